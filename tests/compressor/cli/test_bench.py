"""What ``compressor bench`` prints of real bundles, and writes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from compressor.cli.bench import show_bench
from targets import Bundle
from targets.bench import BenchEntry, BenchReport, Sweep
from targets.benchmark import BenchmarkSettings, CaseResult
from targets.environment import Environment
from targets.measurement import Measurement, Round
from targets.workloads import bundle_texts

QUICK = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1")


@pytest.mark.slow
def test_bench_fits_a_narrow_terminal_and_names_each_bundle_by_its_path(finished, compressor):
    bundles = [finished.output / "bundles" / f"{name}-onnxruntime" for name in ("fp32", "int8")]
    outcome = compressor("bench", *bundles, *QUICK)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    for number, bundle in enumerate(bundles, start=1):
        assert f"{number}  {bundle}" in lines
    table = [line for line in lines if re.match(r"\s*\d .* 1 x 16 ", line)]
    assert [line.split()[:2] for line in table] == [["1", "1"], ["2", "1"]]
    assert [line for line in table if len(line) > 80 or "…" in line] == []
    too_long = compressor("bench", bundles[0], "--sequence-length", "33")
    assert too_long.code == 3
    assert "the model takes no text of this length" in too_long.err
    assert "fix:   use at most 32" in too_long.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rounds", "2000"), "--rounds: Input should be less than or equal to 1000"),
        (("--threads", "2000"), "Input should be less than or equal to 1024"),
        ([each for size in range(1, 18) for each in ("--batch-size", size)], "at most 16 items"),
    ],
)
def test_values_out_of_range_are_told_as_such(options, said, finished, compressor):
    outcome = compressor("bench", finished.output / "bundles" / "int8-onnxruntime", *options)
    assert outcome.code == 2
    assert said.replace(" ", "") in "".join(outcome.err.replace("│", " ").split())


def measured(ns: int, *, energy_j: float | None) -> Measurement:
    """Two rounds of two runs, the second one twice as long."""
    rounds = [
        Round(run_ns=(time, time), cpu_ns=2 * time, others_cpus=0.0, energy_j=energy_j)
        for time in (ns, 2 * ns)
    ]
    return Measurement(
        rounds=tuple(rounds),
        threads=16,
        batch_size=16,
        sequence_length=None,
        tokenization=True,
        num_cpus=16,
        load_time_ms=1,
        peak_memory_bytes=1,
        size_bytes=1,
    )


def report_of(entry: BenchEntry, *, num: int = 1) -> BenchReport:
    return BenchReport(
        created="",
        environment=Environment.here(),
        settings=BenchmarkSettings(),
        sweep=Sweep(threads=(16,), batch_sizes=(16,), real_texts=True),
        entries=(entry,) * num,
    )


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        ({"reference_ns": 1000, "wakeup_ns": 30}, ""),
        ({"reference_ns": 1200, "wakeup_ns": 30}, "fixed work took 1.20x as long as it has"),
        ({"reference_ns": 1000, "wakeup_ns": 60}, "waking a thread took 2.00x as long as it has"),
        ({"reference_ns": 1200, "wakeup_ns": 60}, "before and waking a thread took 2.00x"),
    ],
    ids=["as ever", "work", "wake-ups", "both"],
)
def test_a_machine_that_is_slower_than_it_has_been_is_told(speed, said, capsys):
    one = measured(1_000_000, energy_j=None)
    best = {"best_reference_ns": 1000, "best_wakeup_ns": 30}
    rounds = tuple(each.model_copy(update=speed) for each in one.rounds)
    result = CaseResult(measurements=(one.model_copy(update={"rounds": rounds, **best}),))
    show_bench(report_of(BenchEntry(bundle="a", identity="b", threads=16, result=result)))
    shown = " ".join(capsys.readouterr().out.split())
    assert ("the machine is slower than it has been" in shown) is bool(said)
    assert said in shown


@pytest.mark.parametrize("energy_j", [None, 1.234e-3, 12.34], ids=["no energy", "little", "much"])
@pytest.mark.parametrize("ns", [43_210, 432_100, 43_210_000, 4_321_000_000])
def test_the_widest_rows_fit_a_narrow_terminal(ns, energy_j, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    entry = BenchEntry(
        bundle="a",
        identity="b",
        threads=16,
        result=CaseResult(measurements=(measured(ns, energy_j=energy_j),)),
    )
    show_bench(report_of(entry, num=10))
    shown = capsys.readouterr().out
    assert "…" not in shown
    rows = [line for line in shown.splitlines() if " 16 x raw text " in line]
    assert len(rows) == 10
    energy = {None: [], 1.234e-3: ["0.0386"], 12.34: ["386"]}[energy_j]
    assert rows[0].split()[-1 - len(energy) :] == [*energy, "noisy"]
    assert "with fewer than 6 rounds the interval is their range" in " ".join(shown.split())


@pytest.mark.slow
def test_a_sweep_prints_and_writes_every_combination(finished, compressor, tmp_path):
    bundle = finished.output / "bundles" / "int8-onnxruntime"
    options = (
        *QUICK, "--batch-size", "2", "--threads", "1", "--threads", "2", "--real-texts",
        "--cold-starts", "1", "--sustained", "0.5", "--output", tmp_path / "new" / "bench.json",
    )  # fmt: skip
    outcome = compressor("bench", bundle, *options)
    assert outcome.code == 0, outcome.err
    row = re.compile(r"1 +([12]) +(\d x (\d+|real|raw text)) ")
    rows = [row.match(line) for line in outcome.out.splitlines()]
    assert [found.group(1, 2) for found in rows if found] == [
        (threads, shape)
        for threads in "12"
        for shape in ("1 x 16", "2 x 16", "1 x real", "1 x raw text", "2 x real", "2 x raw text")
    ]
    assert outcome.out.count("cold start") == 2
    assert outcome.out.count("too short to tell over") == 2
    report = BenchReport.model_validate_json((tmp_path / "new" / "bench.json").read_bytes())
    assert report.complete
    assert {entry.identity for entry in report.entries} == {Bundle.open(bundle).identity}
    assert report.environment.cpu in outcome.out.replace("\n", " ")


@pytest.mark.slow
def test_texts_come_from_a_file_where_one_is_given(finished, compressor, tmp_path):
    bundle = finished.output / "bundles" / "fp32-onnxruntime"
    assert len(bundle_texts(Bundle.open(bundle))) == 48
    absent = compressor("bench", bundle, *QUICK, "--texts", tmp_path / "absent.txt")
    assert absent.code == 3
    assert "the file of texts cannot be read" in absent.err
    (tmp_path / "texts.txt").write_text("who cat\nwhere is the dog\n", encoding="utf-8")
    outcome = compressor("bench", bundle, *QUICK, "--texts", tmp_path / "texts.txt")
    assert outcome.code == 0, outcome.err
    assert "raw text" in outcome.out


@pytest.mark.slow
def test_tune_prints_every_alternative_and_writes_a_bundle_that_runs(
    finished, compressor, tmp_path
):
    bundle, key = tmp_path / "signed", tmp_path / "private.pem"
    shutil.copytree(finished.output / "bundles" / "int8-openvino", bundle)
    make_key = ("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
    subprocess.run(make_key, check=True, capture_output=True)
    assert compressor("sign", bundle, "--key", key).code == 0
    options = (
        "--rounds", "6", "--sequence-length", "16", "--even-if-noisy",
        "--output", tmp_path / "tuned",
    )  # fmt: skip
    outcome = compressor("tune", bundle, *options)
    assert outcome.code == 0, outcome.err
    for name in ("default", "pinned threads", "throughput hint"):
        assert any(line.strip().startswith(name) for line in outcome.out.splitlines())
    assert "tuned: " in outcome.out
    told = " ".join(outcome.out.split())
    assert "note: the tuned bundle is a new one and is not signed: sign it as well" in told
    assert not (tmp_path / "tuned" / "model.sig").exists()
    assert compressor("verify", tmp_path / "tuned").code == 0
    assert compressor("predict", tmp_path / "tuned", "--text", "who").code == 0
    again = compressor("tune", bundle, *options)
    assert again.code == 6
    assert "the folder for the tuned bundle is not empty" in again.err
