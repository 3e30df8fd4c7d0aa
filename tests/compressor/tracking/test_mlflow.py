"""`compressor track --to mlflow` on a real server, read back through its client."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import targets
from compressor.report.files import read_report
from targets.bundle import Bundle, hash_file
from targets.signing import verify_signature

from .conftest import bundle, gate

PASSWORD = "hunter2-secret"  # noqa: S105  (to look for it in what is printed)
Command = Callable[..., Any]


def runs_of(client: Any, experiment: str) -> tuple[list[Any], dict[str, Any]]:
    """The runs of reports, and the nested ones by row."""
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    rows = {run.data.tags["compressor.row"]: run for run in found if run not in parents}
    assert len(rows) == len(found) - len(parents)
    return parents, rows


def track(compressor: Command, report: Path, uri: str, *options: object) -> Any:
    return compressor("track", report, "--to", "mlflow", "--uri", uri, *options)


def versions_of(client: Any, model: str) -> dict[str, Any]:
    """The versions of a model by their row."""
    return {each.tags["row"]: each for each in client.search_model_versions(f"name = '{model}'")}


def downloaded(client: Any, version: Any, folder: Path) -> Bundle:
    """The bundle that a version leads to."""
    from mlflow.artifacts import download_artifacts

    uri = client.get_model_version_download_uri(version.name, version.version)
    folder.mkdir(exist_ok=True)
    return Bundle.open(
        download_artifacts(uri, dst_path=str(folder), tracking_uri=client.tracking_uri)
    )


# What is on the server


def test_a_report_is_one_run_with_its_origin_its_verdict_and_its_files(
    released: Any, client: Any, tmp_path: Path
) -> None:
    assert released.outcome.code == 0, released.outcome
    report = read_report(released.output)
    [run], _ = runs_of(client, "words")
    assert f"/runs/{run.info.run_id}" in released.outcome.out
    assert run.info.status == "FINISHED"
    assert run.info.run_name == report.name
    params = run.data.params
    assert params["recipe"] == report.name
    assert params["seed"] == str(report.seed)
    assert params["model_sha256"] == report.model.sha256
    assert params["data_sha256"] == report.data["sha256"]
    assert params["targets"] == "onnxruntime, openvino, tensorrt_rtx, tensorrt, pytorch"
    assert params["machine"] == report.environment.machine[:500]
    tags = run.data.tags
    assert (tags["verdict"], tags["exit_code"]) == ("pass", "0")
    assert (tags["gate_verdict"], tags["gate_exit_code"]) == ("pass", "0")
    for name in ("report.json", "report.md", "report.html", "predictions.safetensors"):
        loaded = client.download_artifacts(run.info.run_id, name, str(tmp_path))
        assert Path(loaded).read_bytes() == (released.output / name).read_bytes()
    loaded = client.download_artifacts(run.info.run_id, "gate.json", str(tmp_path))
    assert json.loads(Path(loaded).read_text()) == json.loads(released.gate.read_text())


def test_every_row_is_a_nested_run_with_what_was_measured(released: Any, client: Any) -> None:
    report = read_report(released.output)
    [parent], rows = runs_of(client, "words")
    assert sorted(rows) == sorted(row.key for row in report.rows)
    for row in report.rows:
        run = rows[row.key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        assert run.data.tags["status"] == row.status
        assert run.data.params["variant"] == row.variant
        assert run.data.params["precision"] == row.precision
        metrics = run.data.metrics
        assert ("test/accuracy" in metrics) == (row.test is not None)
        for shape, measured in row.latency.items():
            assert metrics[f"latency_ms/{shape}/median"] == pytest.approx(measured.median_ms)
            assert metrics[f"latency_ms/{shape}/p99"] == pytest.approx(measured.p99_ms)
    row = next(row for row in report.rows if row.chosen and row.target == "onnxruntime")
    metrics = rows[row.key].data.metrics
    assert row.test is not None
    assert row.validation is not None
    assert row.test_comparison is not None
    assert row.speedup is not None
    assert row.size_bytes is not None
    shape = report.primary_shape
    wanted = {
        "test/accuracy": row.test.value,
        "test/accuracy_low": row.test.low,
        "validation/accuracy": row.validation.value,
        "test/drop_points": row.test_comparison.drop_points,
        "test/drop_points_high": row.test_comparison.high_points,
        "test/agreement": row.test_comparison.agreement,
        "test/calibration_error": row.test_comparison.calibration_error,
        f"latency_ms/{shape}/p90": row.latency[shape].p90_ms,
        "speedup": row.speedup.ratio,
        "speedup_low": row.speedup.low,
        "size_mb": row.size_bytes / 1e6,
        "load_time_ms": row.latency[shape].load_time_ms,
        "peak_memory_mb": row.latency[shape].peak_memory_bytes / 1e6,
    }
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted)


def test_the_settings_and_the_curves_of_passes_are_there(released: Any, client: Any) -> None:
    report = read_report(released.output)
    _, rows = runs_of(client, "words")
    row = next(row for row in report.rows if row.variant == "int8" and row.bundle)
    run = rows[row.key]
    steps = report.steps["int8"]
    at = [step.pass_name for step in steps].index("distill") + 1
    assert run.data.params[f"{at}-distill/epochs"] == "3"
    history = client.get_metric_history(run.info.run_id, f"{at}-distill/loss")
    wanted = [
        (int(point["step"]), pytest.approx(point["loss"]))
        for point in steps[at - 1].history
        if "loss" in point
    ]
    assert len(wanted) > 1
    assert sorted((each.step, each.value) for each in history) == wanted


def test_what_is_registered_can_be_loaded_and_predicts(
    released: Any, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)

    report = read_report(released.output)
    chosen = {row.key: row for row in report.rows if row.chosen and row.bundle}
    versions = client.search_model_versions("name = 'questions'")
    assert sorted(each.tags["row"] for each in versions) == sorted(chosen)
    for each in versions:
        assert f"registered questions, version {each.version}: " in released.outcome.out
        row = chosen[each.tags["row"]]
        original = Bundle.open(released.output / str(row.bundle))
        assert each.tags["bundle_identity"] == original.identity
        assert (each.tags["precision"], each.tags["verdict"]) == (row.precision, "pass")
        assert each.tags["target"].startswith(row.target)
    version = next(each for each in versions if each.tags["target"] == "onnxruntime")
    folder = download_artifacts(f"models:/questions/{version.version}", dst_path=str(tmp_path))
    assert Bundle.open(folder).identity == version.tags["bundle_identity"]
    source = released.output / str(chosen[version.tags["row"]].bundle)
    texts = ["who cat tree", "where river"]
    with targets.load(folder, threads=1) as loaded, targets.load(source, threads=1) as original:
        assert loaded.predict(texts) == original.predict(texts)


# Twice, and after an interruption


def test_the_same_report_is_tracked_and_registered_once(
    released: Any, client: Any, mlflow_server: str, compressor: Command
) -> None:
    before, rows = runs_of(client, "words")
    versions = len(client.search_model_versions("name = 'questions'"))
    options = ("--experiment", "words", "--register", "questions")
    again = track(compressor, released.output / "report.json", mlflow_server, *options)
    assert again.code == 0, again
    assert f"was tracked before: {mlflow_server}" in again.out
    assert before[0].info.run_id in again.out
    assert "was registered before" in again.out
    after, rows_after = runs_of(client, "words")
    assert [run.info.run_id for run in after] == [run.info.run_id for run in before]
    assert len(rows_after) == len(rows)
    assert len(client.search_model_versions("name = 'questions'")) == versions


def test_what_broke_off_is_made_anew_by_the_same_command(
    released: Any, client: Any, mlflow_server: str, compressor: Command
) -> None:
    with a_server_that_breaks_off(mlflow_server, after=20) as uri:
        broken = track(compressor, released.output, uri, "--experiment", "broken")
    assert broken.code == 10, broken
    assert "the tracking server cannot be reached" in broken.err
    assert "the same command can be run again" in broken.err
    [half], some = runs_of(client, "broken")
    assert some
    assert half.info.status != "FINISHED"
    whole = track(compressor, released.output, mlflow_server, "--experiment", "broken")
    assert whole.code == 0, whole
    assert whole.out.startswith("tracked: ")
    [run], rows = runs_of(client, "broken")
    assert run.info.run_id != half.info.run_id
    assert run.info.status == "FINISHED"
    assert len(rows) == len(read_report(released.output).rows)


def test_a_gate_and_bundles_that_come_later_are_added(
    finished: Any,
    released: Any,
    client: Any,
    mlflow_server: str,
    compressor: Command,
    tmp_path: Path,
) -> None:
    shutil.copyfile(finished.output / "report.json", tmp_path / "report.json")
    first = track(compressor, tmp_path, mlflow_server, "--experiment", "bare")
    assert first.code == 0, first
    options = ("--experiment", "bare", "--register", "bare")
    refused = track(compressor, tmp_path, mlflow_server, *options)
    assert refused.code == 6
    assert "there is no such bundle" in refused.err
    options = (*options, "--gate", released.gate)
    late = track(compressor, finished.output, mlflow_server, *options)
    assert late.code == 0, late
    [run], _ = runs_of(client, "bare")
    assert run.data.tags["gate_verdict"] == "pass"
    assert "gate.json" in [each.path for each in client.list_artifacts(run.info.run_id)]
    assert late.out.count("registered bare, version ") == len(versions_of(client, "bare"))
    for version in versions_of(client, "bare").values():
        assert downloaded(client, version, tmp_path).identity == version.tags["bundle_identity"]


def test_another_gate_brings_the_bundles_that_it_ships(
    folder: Path, client: Any, mlflow_server: str, compressor: Command, tmp_path: Path
) -> None:
    options = ("--experiment", "regated", "--register", "regated")
    assert track(compressor, folder, mlflow_server, *options).code == 0
    assert set(versions_of(client, "regated")) == {"int8-onnxruntime"}
    bundle(folder / "bundles" / "fp32-onnxruntime")
    bundle(folder / "bundles" / "fp32-openvino")
    judged = gate(compressor, folder, "--set", "min_size_ratio=1", "--set", "max_accuracy_drop=5")
    again = track(compressor, folder, mlflow_server, *options, "--gate", judged)
    assert again.code == 0, again
    ships = [Path(name).name for name in json.loads(judged.read_text())["ships"]]
    assert "fp32-onnxruntime" in ships
    version = versions_of(client, "regated")["fp32-onnxruntime"]
    assert f"registered regated, version {version.version}: fp32-onnxruntime" in again.out
    opened = downloaded(client, version, tmp_path / "got")
    assert opened.identity == Bundle.open(folder / "bundles" / "fp32-onnxruntime").identity
    once_more = track(compressor, folder, mlflow_server, *options, "--gate", judged)
    assert once_more.out.count("was registered before") == len(ships)


def test_a_bundle_that_is_signed_later_is_a_new_version(
    folder: Path, client: Any, mlflow_server: str, compressor: Command, keys: Any, tmp_path: Path
) -> None:
    options = ("--experiment", "signed", "--register", "signed")
    assert track(compressor, folder, mlflow_server, *options).code == 0
    source = folder / "bundles" / "int8-onnxruntime"
    assert compressor("sign", source, "--key", keys.private).code == 0
    again = track(compressor, folder, mlflow_server, *options)
    assert again.code == 0, again
    assert "was tracked before" in again.out
    assert "registered signed, version 2: int8-onnxruntime" in again.out
    first, second = (client.get_model_version("signed", number) for number in "12")
    assert not downloaded(client, first, tmp_path / "1").is_signed
    verify_signature(downloaded(client, second, tmp_path / "2"), keys.public)
    once_more = track(compressor, folder, mlflow_server, *options)
    assert "was registered before: signed, version 2: int8-onnxruntime" in once_more.out
    assert len(client.search_model_versions("name = 'signed'")) == 2


def test_a_row_that_was_deleted_on_the_server_is_named(
    folder: Path, client: Any, mlflow_server: str, compressor: Command
) -> None:
    assert track(compressor, folder, mlflow_server, "--experiment", "torn").code == 0
    _, rows = runs_of(client, "torn")
    client.delete_run(rows["int8-onnxruntime"].info.run_id)
    again = track(compressor, folder, mlflow_server, "--experiment", "torn", "--register", "torn")
    assert again.code == 10
    assert "the run of a row to register is not on the server any more" in again.err
    assert "where: int8-onnxruntime" in again.err
    assert "delete the run of the report" in again.err


def test_the_log_of_the_client_is_not_printed(folder: Path, mlflow_server: str) -> None:
    command = ("track", str(folder), "--to", "mlflow", "--uri", mlflow_server)
    script = "import sys; from compressor.cli.app import main; main(sys.argv[1:])"
    options = ("--experiment", "quiet", "--register", "quiet")
    done = subprocess.run(
        [sys.executable, "-c", script, *command, *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "registered quiet, version 1" in done.stdout


# Servers that do not take it


def test_a_server_that_is_not_there(finished: Any, compressor: Command) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        outcome = track(compressor, finished.output, uri)
    assert outcome.code == 10
    assert "the tracking server cannot be reached" in outcome.err
    assert f"where: {uri}" in outcome.err
    assert "Connection refused" in outcome.err
    assert "the same command can be run again" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_refused_login_says_so_and_prints_no_password(
    finished: Any, compressor: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    with a_server_that_answers(401, b"You are not authenticated.") as (uri, headers):
        outcome = track(compressor, finished.output, uri)
    assert headers[0]["Authorization"].startswith("Basic ")
    assert outcome.code == 10
    assert "the tracking server refuses the login" in outcome.err
    assert "HTTP status 401" in outcome.err
    assert "MLFLOW_TRACKING_USERNAME" in outcome.err
    assert PASSWORD not in outcome.out + outcome.err


@pytest.mark.parametrize("status", [200, 404])
def test_an_address_of_something_else(finished: Any, compressor: Command, status: int) -> None:
    with a_server_that_answers(status, b"<html>a page</html>") as (uri, _):
        outcome = track(compressor, finished.output, uri)
    assert outcome.code == 10
    assert "there is no MLflow server at this address" in outcome.err


def test_an_experiment_that_was_deleted(
    finished: Any, client: Any, mlflow_server: str, compressor: Command
) -> None:
    identity = client.create_experiment("gone")
    client.delete_experiment(identity)
    outcome = track(compressor, finished.output, mlflow_server, "--experiment", "gone")
    assert outcome.code == 10
    assert "the experiment was deleted" in outcome.err
    assert f"mlflow experiments restore -x {identity}" in outcome.err


def test_what_the_server_refuses_is_told_in_its_words(
    finished: Any, mlflow_server: str, compressor: Command
) -> None:
    outcome = track(compressor, finished.output, mlflow_server, "--experiment", "x" * 600)
    assert outcome.code == 10
    assert "the tracking server rejects the record" in outcome.err
    assert "500" in outcome.err


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("localhost:5000", "this is not the address of an MLflow server"),
        ("http://host:port", "this is not the address of an MLflow server"),
        (f"http://me:{PASSWORD}@localhost", "the address of the server contains credentials"),
    ],
)
def test_addresses_that_are_none(
    finished: Any, compressor: Command, uri: str, message: str
) -> None:
    outcome = track(compressor, finished.output, uri)
    assert outcome.code == 2
    assert message in outcome.err
    assert "where: --uri" in outcome.err
    assert PASSWORD not in outcome.err


def test_the_server_comes_from_the_environment(
    finished: Any, compressor: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = compressor("track", finished.output, "--to", "mlflow")
    assert outcome.code == 2
    assert "no MLflow server is given" in outcome.err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{PASSWORD}@host")
    outcome = compressor("track", finished.output, "--to", "mlflow")
    assert outcome.code == 2
    assert "where: MLFLOW_TRACKING_URI" in outcome.err
    assert PASSWORD not in outcome.err


def test_the_report_is_known_by_its_bytes(released: Any, client: Any) -> None:
    [run], _ = runs_of(client, "words")
    wanted = hash_file(released.output / "report.json")
    assert run.data.tags["compressor.report_sha256"] == wanted


# Servers of our own


@contextmanager
def serving(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    for method in ("GET", "POST", "PUT", "PATCH"):
        setattr(Handler, f"do_{method}", handle)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


@contextmanager
def a_server_that_answers(status: int, body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """One that is no MLflow, such as a proxy; with the headers of all requests."""
    headers: list[Any] = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        headers.append(request.headers)
        _answer(request, status, body, "text/html")

    with serving(handle) as uri:
        yield uri, headers


@contextmanager
def a_server_that_breaks_off(behind: str, *, after: int) -> Iterator[str]:
    """Hands requests on to the real one, but only so many."""
    count = iter(range(after))

    def handle(request: BaseHTTPRequestHandler) -> None:
        if next(count, None) is None:
            request.close_connection = True
            return
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        connection = http.client.HTTPConnection(str(urlsplit(behind).netloc))
        connection.request(request.command, request.path, body, dict(request.headers))
        found = connection.getresponse()
        _answer(request, found.status, found.read(), str(found.headers["Content-Type"]))
        connection.close()

    with serving(handle) as uri:
        yield uri


def _answer(request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)
