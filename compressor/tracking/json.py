"""The record as one file of plain JSON."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from compressor.errors import TrackingError
from compressor.storage import write_atomically
from compressor.tracking.base import AGAIN, Tracked, Tracker
from compressor.tracking.record import Record, version_key

__all__ = ["Json"]

DEFAULT_NAME = "record.json"


class Json(Tracker):
    """One file of plain JSON, by default `record.json` beside the report."""

    name: ClassVar[str] = "json"

    def track(self, record: Record) -> Tracked:
        """Write the record; that of another report in its place is replaced."""
        folder = record.run.files[0].parent
        file = folder / DEFAULT_NAME if self.uri is None else Path(self.uri)
        before = self._read(file)
        if before is not None and before.report_sha256 == record.report_sha256:
            # What an earlier call named stays.
            known = {(each.model, version_key(each.tags)) for each in before.models}
            new = [
                each for each in record.models if (each.model, version_key(each.tags)) not in known
            ]
            record = record.model_copy(update={"models": (*before.models, *new)})
            if not record.gate:
                kept = {"gate": before.gate, "gate_file": before.gate_file}
                record = record.model_copy(update=kept)
            self._write(file, record)
            return Tracked(str(file), is_new=False)
        self._write(file, record)
        return Tracked(str(file), is_new=True)

    def _read(self, file: Path) -> Record | None:
        try:
            return Record.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            given = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            raise TrackingError(
                "the file for the record exists, and cannot be read as a record",
                where=file,
                given=given,
                fix=f"pass another file with --uri; {AGAIN}",
            ) from error

    def _write(self, file: Path, record: Record) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, record.model_dump_json(indent=1))
        except OSError as error:
            raise TrackingError(
                "the record cannot be written",
                where=file,
                given=error.strerror or error,
                fix=f"pass --uri with a file in a writable folder; {AGAIN}",
            ) from error
