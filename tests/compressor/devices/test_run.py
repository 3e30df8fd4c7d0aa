"""A run measures its bundles on the devices of the recipe, and its reports have a column each."""

from __future__ import annotations

import pytest
import yaml

from compressor.report.files import read_report

pytest.importorskip("asyncssh")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(home, finished, device_environment, make_servers, tmp_path_factory, compressor):
    """One run on a device that works, without OpenVINO, and on one that is not there."""
    folder = tmp_path_factory.mktemp("measured")
    server = make_servers(0)
    board = server.settings(python=str(device_environment / "python"))
    gone = board | {"address": f"ssh://root@{server.address}:1"}
    (folder / "devices.yaml").write_text(yaml.safe_dump({"board": board, "gone": gone}))

    def run(inventory, output, *more):
        return compressor(
            "run", home / "recipe.yaml", "--output", folder / output, "--store", finished.store,
            "--set", "targets=[onnxruntime, openvino]", "--set", f"devices={inventory}", *more,
        )  # fmt: skip

    return folder, run, run(folder / "devices.yaml", "out")


def test_the_report_has_what_each_device_found(measured):
    folder, _, outcome = measured
    assert outcome.code == 0, (outcome.out, outcome.err)
    report = read_report(folder / "out")
    assert list(report.devices) == ["board", "gone"]
    assert report.devices["board"].environment is not None
    assert report.devices["board"].reason is None
    assert "cannot be reached" in (report.devices["gone"].reason or "")
    rows = {(row.variant, row.target): row for row in report.rows}
    int8 = rows["int8", "onnxruntime"].devices
    assert list(int8) == ["board"]
    assert int8["board"].latency[report.primary_shape].rounds
    assert int8["board"].speedup is not None
    assert rows["original", "onnxruntime"].devices["board"].speedup.ratio == 1
    missing = rows["int8", "openvino"].devices["board"]
    assert missing.latency == {}
    assert "openvino" in (missing.reason or "")
    assert rows["original", "pytorch"].devices == {}  # a reference, which is not shipped


def test_every_form_of_the_report_has_a_column_for_each_device(measured):
    folder, _, outcome = measured
    assert "On the devices, ms" in outcome.out
    assert "gone: the device cannot be reached" in " ".join(outcome.out.split())
    assert "| board, ms |" in (folder / "out" / "report.md").read_text()
    page = (folder / "out" / "report.html").read_text()
    assert "board, ms</th>" in page
    assert "<strong>gone:</strong>" in page


def test_a_device_is_measured_once_as_long_as_nothing_changes(measured, tmp_path):
    folder, run, _ = measured
    entries = yaml.safe_load((folder / "devices.yaml").read_text())
    alone = tmp_path / "alone.yaml"
    alone.write_text(yaml.safe_dump({"board": entries["board"]}))
    outcome = run(alone, "again")
    [line] = [line for line in outcome.out.splitlines() if "on 1 devices" in line]
    assert " cached " in line
    first, second = read_report(folder / "out"), read_report(folder / "again")
    for one, other in zip(first.rows, second.rows, strict=True):
        assert one.devices == other.devices


def test_what_is_wrong_with_the_devices_is_said_before_the_run(measured, tmp_path):
    _, run, _ = measured
    (tmp_path / "bad.yaml").write_text("board: {address: 'http://x', treads: 3}\n")
    outcome = run(tmp_path / "bad.yaml", "bad")
    assert outcome.code == 3
    assert "treads" in outcome.err
    assert "address" in outcome.err
    absent = run(tmp_path / "absent.yaml", "bad")
    assert absent.code == 3
    assert "the file does not exist" in absent.err
