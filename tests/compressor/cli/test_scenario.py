"""``compressor bench --scenario``: what it prints, writes and refuses, on a real small bundle."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from targets import Bundle, Manifest, Signature, Source, get
from targets.bundle import SCHEMA_VERSION
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import TextPreprocessing

MAX_LENGTH = 32
ROWS = [[row + column + 1 for column in range(2 + row % 9)] for row in range(30)]


Bench = Callable[..., Any]


@pytest.fixture
def bench(compressor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Run ``compressor bench`` in this process; its errors without frames, on one line."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Any:
        done = compressor("bench", *arguments)
        return dataclasses.replace(done, err=" ".join(re.sub("[│╭╮╰╯─]", "", done.err).split()))

    return run


@pytest.fixture
def make_bundle(
    tmp_path: Path, encoder_path: Path, encoder_signature: Signature
) -> Callable[..., Path]:
    """Lower the small encoder to ONNX Runtime, with or without test data."""

    def make(name: str = "bundle", *, with_data: bool = True) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        target = get("onnxruntime")
        lowered = target.lower(Source(encoder_path, encoder_signature), folder)
        words = {f"w{index}": index for index in range(500)}
        Tokenizer(models.WordLevel(words, unk_token="w1")).save(str(folder / "tokenizer.json"))  # noqa: S106  (a token of text)
        if with_data:
            pack = EvaluationPack.from_rows(
                {"input_ids": ROWS},
                [0] * len(ROWS),
                preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
            )
            pack.save(folder / "evaluation.safetensors")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            task="text-classification",
            target=target.name,
            target_settings=target.settings(),
            precision="fp32",
            signature=encoder_signature,
            model=lowered.model,
            options=dict(lowered.options),
            labels=("a", "b", "c"),
            preprocessing=TextPreprocessing(max_length=MAX_LENGTH, pad_token_id=0),
            evaluation="evaluation.safetensors" if with_data else None,
            files={},
        )
        Bundle.create(folder, manifest)
        return folder

    return make


MakeBundle = Callable[..., Path]


@pytest.mark.parametrize(
    ("scenario", "options"),
    [
        ("single-stream", ()),
        ("multi-stream", ("--samples-per-query", "3", "--max-batch", "2")),
        ("offline", ("--max-batch", "7")),
        ("server", ("--qps", "250", "--p99-ms", "150", "--max-batch", "2")),
    ],
)
def test_every_scenario_runs_and_is_written_with_its_logs(
    bench: Bench, make_bundle: MakeBundle, tmp_path: Path, scenario: str, options: tuple[str, ...]
) -> None:
    bundle, output = make_bundle(), tmp_path / "load.json"
    done = bench(bundle, "--scenario", scenario, "--duration", "1", *options, "--output", output)
    document = json.loads(output.read_text(encoding="utf-8"))
    result = document["result"]
    # On a busy machine a run as short as this may hold too few queries.
    assert done.code == (0 if result["valid"] else 6), done.err
    assert scenario in done.out
    assert f"{result['num_queries']} queries, {result['num_samples']} samples" in done.out
    assert "30 texts of 2 to 10 tokens" in done.out
    assert f"noise: {result['machine']['noise']['verdict']}" in done.out
    assert result["settings"]["scenario"] == scenario
    assert document["samples"]["lengths"] == [len(row) for row in ROWS]
    assert document["bundle"]["identity"] == Bundle.open(bundle).identity
    assert document["environment"]["libraries"]["mlcommons-loadgen"]
    assert document["logs"] == ["load.loadgen/01"]
    summary = tmp_path / document["logs"][0] / "mlperf_log_summary.txt"
    assert "MLPerf Results Summary" in summary.read_text(encoding="utf-8")


def test_without_an_output_nothing_is_left(
    bench: Bench, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    before = sorted(tmp_path.rglob("*"))
    assert bench(bundle, "--scenario", "offline", "--duration", "0.1").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_without_test_data_texts_are_random_and_as_long_as_the_model_takes(
    bench: Bench, make_bundle: MakeBundle
) -> None:
    options = ("--scenario", "single-stream", "--duration", "0.1")
    bare, full = make_bundle("bare", with_data=False), make_bundle("full")
    assert f"texts of {MAX_LENGTH} to {MAX_LENGTH} tokens" in bench(bare, *options).out
    asked = bench(full, *options, "--sequence-length", "7").out
    assert "64 texts of 7 to 7 tokens (7 on average), random tokens" in asked


def test_a_rate_that_is_not_held_has_the_exit_code_of_the_budget(
    bench: Bench, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    output = tmp_path / "load.json"
    options = ("--scenario", "server", "--qps", "1000000", "--p99-ms", "1", "--duration", "0.5")
    done = bench(make_bundle(), *options, "--output", output)
    assert done.code == 5
    assert "the rate is not held with 99% of the answers within 1 ms" in done.err
    assert "queries took longer than 1.0 ms" in done.err
    assert "fix: lower --qps or raise --p99-ms" in done.err
    assert "not valid: " in done.out
    assert json.loads(output.read_text(encoding="utf-8"))["result"]["valid"] is False


def test_a_bound_that_no_rate_holds_says_so(
    bench: Bench, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    output = tmp_path / "load.json"
    options = ("--scenario", "server", "--p99-ms", "0.001", "--duration", "0.5")
    done = bench(make_bundle(), *options, "--output", output)
    document = json.loads(output.read_text(encoding="utf-8"))
    assert done.code == 5
    assert "no rate is held: one query at a time already takes longer than the bound" in done.err
    assert "given: one query at a time: median" in done.err
    assert document["result"] is None
    assert document["search"]["unloaded"]["settings"]["scenario"] == "single-stream"


@pytest.mark.slow
def test_a_search_tells_what_it_found_and_every_run_is_kept(
    bench: Bench, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    output = tmp_path / "load.json"
    options = ("--scenario", "server", "--p99-ms", "50", "--duration", "0.4", "--output", output)
    done = bench(make_bundle(), *options)
    document = json.loads(output.read_text(encoding="utf-8"))
    search, result = document["search"], document["result"]
    assert len(document["logs"]) == 1 + len(search["probes"]) + len(search["confirmations"])
    assert all((tmp_path / each / "mlperf_log_detail.txt").is_file() for each in document["logs"])
    if result is None:  # on a machine that is too busy to hold anything
        assert done.code == 5
        assert "no rate is held" in done.err
    else:
        assert done.code == 0
        assert result == search["confirmations"][-1]
        assert result["valid"]
        rate = f"{result['settings']['qps']:.5g}"
        assert f"the highest rate held: {rate} queries a second, with 99% of the" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--qps", "3"], "--qps needs --scenario"),
        (["--max-batch", "3"], "--max-batch needs --scenario"),
        (["--scenario", "sever"], "there is no scenario 'sever': use single-stream, multi-stream"),
        (["--scenario", "server"], "--scenario server needs --p99-ms"),
        (["--scenario", "offline", "--qps", "3"], "--qps has no effect with --scenario offline"),
        (["--scenario", "single-stream", "--max-batch", "3"], "--max-batch has no effect with"),
        (["--scenario", "offline", "--rounds", "3"], "--rounds has no effect with"),
        (["--scenario", "offline", "--batch-size", "3"], "--batch-size has no effect with"),
        (["--scenario", "offline", "--duration", "0"], "--duration 0.0: Input should be greater"),
        (["--scenario", "offline", "--max-batch", "0"], "--max-batch 0: Input should be greater"),
        (["--scenario", "server", "--p99-ms", "nan"], "--p99-ms nan: Input should be"),
        (["--scenario", "offline", "--on", "ssh://me@board"], "--scenario runs here only"),
        (["more", "--scenario", "offline"], "a scenario runs on one bundle; 2 were given"),
    ],
)
def test_mistakes_on_the_command_line_are_told_before_anything_runs(
    bench: Bench, arguments: list[str], words: str
) -> None:
    done = bench("nowhere", *arguments)
    assert done.code == 2
    assert words in done.err


def test_a_length_that_the_model_does_not_take(bench: Bench, make_bundle: MakeBundle) -> None:
    done = bench(make_bundle(), "--scenario", "offline", "--sequence-length", MAX_LENGTH + 1)
    assert done.code == 3
    assert f"given: {MAX_LENGTH + 1} tokens fix: use at most {MAX_LENGTH}" in done.err


def test_a_run_that_is_not_valid_is_no_success(bench: Bench, make_bundle: MakeBundle) -> None:
    done = bench(make_bundle(), "--scenario", "multi-stream", "--duration", "0.01")
    assert done.code == 6
    assert "queries/s" in done.out
    assert "error: LoadGen does not call the run valid" in done.err
    assert "queries are too few to be 99% sure of the percentile" in done.err
    assert "fix: raise --duration" in done.err


def test_a_missing_library_names_the_extra(
    bench: Bench, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    done = bench(make_bundle(), "--scenario", "offline")
    assert done.code == 7
    assert "fix: pip install 'compressor[loadgen]'" in done.err
