"""What an earlier run left in the output folder is not taken for a bundle of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import ReportError
from compressor.publishing import set_aside
from targets.archive import MANIFEST


def bundle(output: Path, name: str, content: str = "{}") -> Path:
    folder = output / "bundles" / name
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(content)
    return folder


def test_a_bundle_that_is_not_in_the_report_is_moved_and_kept(tmp_path: Path) -> None:
    stays, goes = bundle(tmp_path, "int8-onnxruntime"), bundle(tmp_path, "int8-openvino", "old")
    mine = tmp_path / "bundles" / "notes"
    mine.mkdir()
    (line,) = set_aside(tmp_path, {"bundles/int8-onnxruntime"})
    moved = tmp_path / "earlier-bundles" / "int8-openvino"
    assert line == f"{goes} is of an earlier run and not in this report: it is in {moved} now"
    assert (moved / MANIFEST).read_text() == "old"
    assert stays.is_dir()
    assert mine.is_dir()
    assert not goes.exists()


def test_what_was_moved_before_is_not_lost(tmp_path: Path) -> None:
    for content in ("first", "second"):
        bundle(tmp_path, "int8", content)
        assert len(list(set_aside(tmp_path, ()))) == 1
    kept = sorted((tmp_path / "earlier-bundles").glob(f"*/{MANIFEST}"))
    assert [(path.parent.name, path.read_text()) for path in kept] == [
        ("int8", "first"), ("int8-1", "second"),
    ]  # fmt: skip


def test_one_that_cannot_be_moved_ends_the_run(tmp_path: Path) -> None:
    bundle(tmp_path, "int8")
    (tmp_path / "earlier-bundles").write_text("in the way")
    with pytest.raises(ReportError, match="cannot be moved away") as caught:
        list(set_aside(tmp_path, ()))
    assert "--output" in str(caught.value.fix)
