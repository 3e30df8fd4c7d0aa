"""A server of MLflow: a run for the report, with a nested one for each row."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from compressor.errors import AddressError, TrackingError
from compressor.tracking.base import AGAIN, Tracked, Tracker
from compressor.tracking.record import Entry, ModelVersion, Record, version_key
from targets.errors import MissingLibraryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Mlflow"]

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DIGEST = "compressor.report_sha256"
ROW = "compressor.row"
PARENT, RUN_NAME, COMMIT = "mlflow.parentRunId", "mlflow.runName", "mlflow.source.git.commit"
GATE_NAME = "gate.json"
MAX_VALUE = 500
"""Characters of a parameter that servers of every version take."""
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, 900

UNREACHABLE = (
    "NameResolution|ConnectionError|Connection refused|NewConnection"
    "|Connection aborted|Connection reset|Connection broken|RemoteDisconnected|Broken pipe"
)
"""What the client says of a server that is not there, or not any more."""

QUIET = {
    # A server that is not there is to be known in seconds; by default it takes minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
"""Settings of the client, where the environment has none of its own."""


class Mlflow(Tracker):
    """A server of MLflow, by default that of MLFLOW_TRACKING_URI."""

    name: ClassVar[str] = "mlflow"

    def track(self, record: Record) -> Tracked:
        """Keep a record as a run; a run of the same report that was interrupted is replaced."""
        uri = self._address()
        with _settings(), _errors(uri):
            try:
                from mlflow import MlflowClient
            except ImportError as error:
                raise MissingLibraryError.for_extra("mlflow", "mlflow", "track") from error
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            experiment = _experiment(client, record.experiment)
            parent = _finished(client, experiment, record)
            is_new = parent is None
            if parent is None:
                parent = _log(client, experiment, record)
            else:
                _add(client, experiment, parent, record)
            models = _register(client, experiment, parent, record)
            place = f"{uri}/#/experiments/{experiment}/runs/{parent}"
        return Tracked(place, is_new=is_new, models=models)

    def _address(self) -> str:
        """The address of the server.

        Raises:
            AddressError: There is none, it is no address, or it holds a password.
        """
        uri = self.uri or os.environ.get(URI_VARIABLE)
        where = "--uri" if self.uri else URI_VARIABLE
        if not uri:
            raise AddressError(
                "no MLflow server is given",
                fix=f"pass --uri http://host:5000, or set {URI_VARIABLE}",
            )
        try:
            parts = urlsplit(uri)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname)
            valid = valid and (parts.port is None or parts.port > 0)
        except ValueError:
            valid = False
        if "@" in uri:
            raise AddressError(
                "the address of the server contains credentials",
                where=where,
                fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN, and leave credentials out of the address",
            )
        if not valid:
            raise AddressError(
                "this is not the address of an MLflow server",
                where=where,
                given=uri,
                fix="pass one such as http://host:5000",
            )
        return uri.rstrip("/")


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made if there is none."""
    found = client.get_experiment_by_name(name)
    if found is None:
        return str(client.create_experiment(name))
    if found.lifecycle_stage != "active":
        raise TrackingError(
            "the experiment was deleted",
            where=name,
            fix=f"restore it with `mlflow experiments restore -x {found.experiment_id}` on the "
            f"server, or pass another one with --experiment; {AGAIN}",
        )
    return str(found.experiment_id)


def _finished(client: MlflowClient, experiment: str, record: Record) -> str | None:
    """The id of the run of this report; what is left of interrupted ones is deleted."""
    found = None
    for run in _runs(client, experiment, record, f"tags.`{DIGEST}` = '{record.report_sha256}'"):
        if PARENT in run.data.tags:
            continue
        if run.info.status == "FINISHED":
            found = found or run.info.run_id
            continue
        nested = f"tags.`{PARENT}` = '{run.info.run_id}'"
        for each in _runs(client, experiment, record, nested):
            client.delete_run(each.info.run_id)
        client.delete_run(run.info.run_id)
    return found


def _runs(client: MlflowClient, experiment: str, record: Record, wanted: str) -> list[Run]:
    found: list[Run] = []
    page = None
    while True:
        runs = client.search_runs([experiment], wanted, max_results=1000, page_token=page)
        found += runs
        page = runs.token
        if not page:
            return found


def _log(client: MlflowClient, experiment: str, record: Record) -> str:
    """Log everything; the run of the report is finished last, when all is there."""
    digest = {DIGEST: record.report_sha256}
    parent = _start(client, experiment, record.run, digest)
    try:
        for file in record.run.files:
            client.log_artifact(parent, str(file))
        if record.gate_file is not None:
            _log_gate(client, parent, record)
        for entry in record.rows:
            run = _start(client, experiment, entry, {**digest, PARENT: parent, ROW: entry.name})
            _log_bundle(client, run, entry, {})
            client.set_terminated(run)
        client.set_terminated(parent)
    except BaseException:
        # Not to look as if it went on. The next call replaces it in any case.
        with contextlib.suppress(Exception), _settings({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):
            client.set_terminated(parent, "FAILED")
        raise
    return parent


def _start(client: MlflowClient, experiment: str, entry: Entry, tags: Mapping[str, str]) -> str:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    own = {_name(key): value for key, value in entry.tags.items()}
    if "git_commit" in own:
        own[COMMIT] = own["git_commit"]
    run = client.create_run(experiment, tags={**own, **tags, RUN_NAME: entry.name})
    params = [Param(_name(key), _short(value)) for key, value in entry.params.items()]
    metrics = [Metric(_name(key), value, now, 0) for key, value in entry.metrics.items()]
    metrics += [
        Metric(_name(key), point.value, now, point.step)
        for key, points in entry.curves.items()
        for point in points
    ]
    identity: str = run.info.run_id
    for at in range(0, len(params), PARAMS_PER_BATCH):
        client.log_batch(identity, params=params[at : at + PARAMS_PER_BATCH])
    for at in range(0, len(metrics), METRICS_PER_BATCH):
        client.log_batch(identity, metrics=metrics[at : at + METRICS_PER_BATCH])
    return identity


def _log_gate(client: MlflowClient, run: str, record: Record) -> None:
    assert record.gate_file is not None
    client.log_text(run, record.gate_file.read_text(encoding="utf-8"), GATE_NAME)
    for key, value in record.gate.items():
        client.set_tag(run, key, value)


def _add(client: MlflowClient, experiment: str, parent: str, record: Record) -> None:
    """Log what a finished run has not: the gate, and bundles that it was tracked without."""
    if record.gate_file is not None:
        _log_gate(client, parent, record)
    rows = _nested(client, experiment, parent, record)
    for entry in record.rows:
        run = rows.get(entry.name)
        if run is not None:
            _log_bundle(client, run.info.run_id, entry, run.data.tags)


def _log_bundle(client: MlflowClient, run: str, entry: Entry, tags: Mapping[str, str]) -> None:
    """Log the bundle of a row; the tag with the name of its folder says that all of it is there."""
    if entry.bundle is None or tags.get(_place(entry)) == entry.bundle_sha256:
        return
    client.log_artifacts(run, str(entry.bundle), _place(entry))
    client.set_tag(run, "bundle_identity", entry.tags["bundle_identity"])
    client.set_tag(run, _place(entry), str(entry.bundle_sha256))


def _place(entry: Entry) -> str:
    """The folder of a bundle in a run: one that was signed later lies beside the first."""
    return f"bundle-{str(entry.bundle_sha256)[:12]}"


def _nested(client: MlflowClient, experiment: str, parent: str, record: Record) -> dict[str, Run]:
    """Row -> its run."""
    found = _runs(client, experiment, record, f"tags.`{PARENT}` = '{parent}'")
    return {str(run.data.tags.get(ROW)): run for run in found}


def _register(
    client: MlflowClient, experiment: str, parent: str, record: Record
) -> tuple[str, ...]:
    """Make a version for each model that is none yet; says what became of each."""
    if not record.models:
        return ()
    runs = _nested(client, experiment, parent, record)
    entries = {entry.name: entry for entry in record.rows}
    known = _versions(client, record.models[0].model)
    return tuple(
        f"was registered before: {each.model}, version {known[version_key(each.tags)]}: {each.row}"
        if version_key(each.tags) in known
        else _new_version(client, each, entries[each.row], runs.get(each.row))
        for each in record.models
    )


def _versions(client: MlflowClient, model: str) -> dict[tuple[str | None, ...], str]:
    """What makes a version -> its number, of all there are; makes the model if it is new."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    found: list[Any] = []
    page = None
    quoted = model.replace("'", "''")
    while True:
        versions = client.search_model_versions(f"name = '{quoted}'", page_token=page)
        found += versions
        page = versions.token
        if not page:
            break
    return {version_key(each.tags): str(each.version) for each in found}


def _new_version(client: MlflowClient, wanted: ModelVersion, entry: Entry, run: Run | None) -> str:
    if run is None:
        raise TrackingError(
            "the run of a row to register is not on the server any more",
            where=wanted.row,
            fix="delete the run of the report on the server, and track it again",
        )
    source = f"{run.info.artifact_uri}/{_place(entry)}"
    version = client.create_model_version(
        wanted.model, source, run_id=run.info.run_id, tags=wanted.tags
    )
    return f"registered {wanted.model}, version {version.version}: {wanted.row}"


def _name(key: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", key)


def _short(value: str) -> str:
    return value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 1] + "…"


@contextlib.contextmanager
def _settings(forced: Mapping[str, str] | None = None) -> Iterator[None]:
    """Set what the client reads from the environment, and take it back."""
    before = dict(os.environ)
    wanted = {**QUIET, **before} if forced is None else {**before, **forced}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in wanted.keys() & before.keys()})


@contextlib.contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Put what the client raises into one error."""
    try:
        yield
    except (ImportError, TrackingError, MissingLibraryError):
        raise
    except Exception as error:
        what, given, fix = _explain(error)
        raise TrackingError(what, where=uri, given=given, fix=f"{fix}; {AGAIN}") from error


def _explain(error: Exception) -> tuple[str, str, str]:
    """What went wrong, in what words, and what to do."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0][:300]
    if re.search(UNREACHABLE, text):
        return (
            "the tracking server cannot be reached",
            _reason(text),
            "check that the address is right and that the server is running",
        )
    if "timeout" in text.lower() or "timed out" in text:
        return (
            "the tracking server does not answer in time",
            line,
            "try again later, or set MLFLOW_HTTP_REQUEST_TIMEOUT to more seconds",
        )
    code = re.search(r"(?:error code|error responses|status code:?) ?(\d{3})", text)
    status = int(code.group(1)) if code else _status(error)
    if status in (401, 403):
        return (
            "the tracking server refuses the login",
            f"HTTP status {status}",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, "
            "to a login that may write there",
        )
    if "valid JSON" in text or (status == 404 and "Response body" in text):
        return (
            "there is no MLflow server at this address",
            line,
            "pass the address of its web page, without # and what follows it",
        )
    return ("the tracking server rejects the record", line, "correct what its message names")


def _status(error: Exception) -> int:
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if callable(status) else 500


def _reason(text: str) -> str:
    """The innermost cause, without what surrounds it."""
    found = re.findall(r"\[Errno -?\d+\] [A-Za-z ]+|Name or service not known", text)
    return found[-1] if found else text.splitlines()[0][:300]
