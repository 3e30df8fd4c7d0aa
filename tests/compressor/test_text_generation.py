"""Language models through the whole toolkit: compressed, measured, judged and asked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import targets
from compressor.report.files import read_report
from targets.bundle import Bundle
from tests.compressor.conftest import Finished, Outcome
from tests.compressor.decoders import make_texts, make_word_tokenizer, write_decoder

RECIPE = """
model: model
task: text-generation
data: {train: train.jsonl, validation: validation.jsonl, test: test.jsonl, max_length: 24}
passes:
  - {pass: drop_layers, num_layers: 2, strategy: importance, examples: 16}
  - {pass: prune, heads: 0.5, ffn: 0.3, examples: 16}
  - {pass: distill, epochs: 2, batch_size: 16, learning_rate: 0.002}
  - {pass: export, max_batch: 4, cache: true}
variants:
  fp32: []
  int8: [{pass: quantize, method: weights}]
targets: [onnxruntime, openvino]
budget: {max_perplexity_rise: 100}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}
output: out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("decoder")
    write_decoder(found)
    (found / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def run(folder: Path, compressor: Callable[..., Outcome]) -> Finished:
    outcome = compressor("run", folder / "recipe.yaml", "--store", folder / "store")
    return Finished(outcome, folder / "out", folder / "store")


def reference_perplexity(folder: Path) -> float:
    """That of the untouched model on the test texts, by transformers itself."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer, losses, count = make_word_tokenizer(), 0.0, 0
    for text in make_texts(40, 3):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            losses += float(module(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return math.exp(losses / count)


def test_a_run_judges_every_target_by_perplexity(run: Finished, folder: Path) -> None:
    assert run.outcome.code == 0, run.outcome.err + run.outcome.out
    report = read_report(run.output)
    expected = reference_perplexity(folder)
    assert {(row.variant, row.target) for row in report.rows if row.status == "measured"} >= {
        (variant, target)
        for variant in ("original", "fp32", "int8")
        for target in ("onnxruntime", "openvino")
    }
    for row in report.rows:
        assert row.test is not None
        assert row.test.unit == "token"
        assert row.test_comparison is not None
        assert row.test_comparison.metrics == {}
        found = row.test_comparison.perplexity
        assert found is not None
        assert found.low < found.value < found.high
        assert found.reference == pytest.approx(expected, rel=1e-4)
        if row.kind == "baseline" and row.precision == "fp32":
            assert found.value == pytest.approx(expected, rel=1e-3)
        assert any(note.startswith("perplexity ") for note in row.notes)
    [check, *_] = next(row.checks for row in report.rows if row.chosen)
    assert check.limit == "max_perplexity_rise"
    assert "perplexity" in (run.output / "report.md").read_text(encoding="utf-8")
    assert "validation perplexity" in run.outcome.err + run.outcome.out


def test_a_run_tells_how_fast_every_bundle_writes(run: Finished) -> None:
    report = read_report(run.output)
    for row in report.rows:
        assert row.writing is not None, row.key
        assert (row.writing.prompt_tokens, row.writing.num_tokens) == (16, 8)  # of 32: 24 in all
        assert len(row.writing.rounds) == 2
        assert row.writing_speedup is not None
        assert row.writing_speedup_eager is not None
        if row.kind == "reference":
            assert row.writing_speedup_eager.ratio == 1
    fastest = {}
    for row in report.rows:
        if row.kind == "candidate" and not row.unmet:
            fastest.setdefault(row.target, []).append((-row.writing.written_per_s, row.key))
    chosen = {row.target: row.key for row in report.rows if row.chosen}
    assert chosen == {target: min(found)[1] for target, found in fastest.items()}
    assert "tokens written a second" in (run.output / "report.md").read_text(encoding="utf-8")
    card = (run.output / "bundles" / "int8-onnxruntime" / "README.md").read_text(encoding="utf-8")
    assert "| writes after 16 tokens |" in card


def test_what_is_written_a_second_is_tracked(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    assert compressor("track", run.output, "--to", "json").code == 0
    written = json.loads((run.output / "record.json").read_text(encoding="utf-8"))
    [metrics] = [each["metrics"] for each in written["rows"] if each["name"] == "int8-openvino"]
    [row] = [each for each in read_report(run.output).rows if each.key == "int8-openvino"]
    assert row.writing is not None
    assert metrics["tokens_per_s"] == pytest.approx(row.writing.written_per_s)
    assert {"first_token_ms", "writing_speedup", "writing_speedup_eager_low"} <= metrics.keys()


def test_a_limit_on_what_is_written_is_judged(
    folder: Path, run: Finished, compressor: Callable[..., Outcome]
) -> None:
    found = compressor(
        "run", folder / "recipe.yaml", "--store", run.store, "--output", folder / "slow",
        "--set", "budget.min_tokens_per_s=1e9",
    )  # fmt: skip
    assert found.code == 5
    assert "tokens/s, wanted 1e+09" in " ".join((found.out + found.err).split())


def test_where_nothing_is_written_that_is_said(
    folder: Path, run: Finished, compressor: Callable[..., Outcome]
) -> None:
    arguments = ("run", folder / "recipe.yaml", "--store", run.store)
    limit = ("--set", "budget.min_tokens_per_s=1")
    for setting in ("benchmark.write_tokens=null", "passes.3.cache=false"):
        refused = compressor(*arguments, *limit, "--set", setting)
        assert refused.code == 3
        assert "there is a limit on what is written, but no bundle will write" in refused.err
    full = compressor(
        *arguments, "--output", folder / "full", "--set", "benchmark.sequence_length=24"
    )
    assert full.code == 0, full.err
    said = " ".join((full.out + full.err).split())
    assert "a prompt of benchmark.sequence_length, 24 tokens, leaves no room for 2 more" in said
    # Without a state it is judged as a model that writes nothing, though eager PyTorch could.
    plain = compressor(*arguments, "--output", folder / "plain", "--set", "passes.3.cache=false")
    assert plain.code == 0, plain.err
    for output in ("full", "plain"):
        assert all(row.writing is None for row in read_report(folder / output).rows)
        assert "tokens/s" not in (folder / output / "report.md").read_text(encoding="utf-8")


def test_a_budget_that_is_missed_says_by_how_much(
    folder: Path, run: Finished, compressor: Callable[..., Outcome]
) -> None:
    found = compressor(
        "run", folder / "recipe.yaml", "--store", run.store, "--output", folder / "strict",
        "--set", "budget.max_perplexity_rise=-99",
    )  # fmt: skip
    assert found.code == 5
    assert "changes the perplexity by" in found.out + found.err
    assert "allowed -99%" in found.out + found.err


def test_a_bundle_scores_texts_and_keeps_the_template_of_chats(run: Finished) -> None:
    path = run.output / "bundles" / "fp32-onnxruntime"
    assert (path / "chat_template.jinja").is_file()
    bundle = Bundle.open(path)
    assert bundle.manifest.labels == ()
    texts = ["w1 w2 w3 w4", "w1", "w3 w9 w1 w1 w7"]
    with targets.load(path) as predictor:
        found = predictor.predict(texts)
        logits = predictor.logits(texts)
    ids = [3 + int(word[1:]) for word in texts[0].split()]
    shifted = logits[:3] - np.log(np.exp(logits[:3]).sum(-1, keepdims=True))
    losses = [-shifted[place, ids[place + 1]] for place in range(3)]
    assert found[0].perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert [each.num_tokens for each in found] == [4, 1, 5]
    assert found[1].perplexity is None


def test_a_device_finds_the_perplexity_again(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    report = read_report(run.output)
    row = next(row for row in report.rows if row.key == "int8-openvino")
    assert row.test_comparison is not None
    assert row.test_comparison.perplexity is not None
    found = compressor("evaluate", run.output / "bundles" / "int8-openvino")
    assert found.code == 0, found.err
    line = next(line for line in found.out.splitlines() if line.startswith("perplexity here:"))
    expected = row.test_comparison.perplexity.value
    assert float(line.split()[-1]) == pytest.approx(expected, abs=2e-3)


def test_a_text_is_scored_on_the_command_line(
    run: Finished, compressor: Callable[..., Outcome]
) -> None:
    path = run.output / "bundles" / "int8-onnxruntime"
    found = compressor("predict", path, "--text", "w1 w2 w3")
    assert found.code == 0, found.err
    answer = json.loads(found.out.splitlines()[0])
    assert answer["num_tokens"] == 3
    assert answer["perplexity"] > 1


def test_a_checkpoint_is_inspected(folder: Path, compressor: Callable[..., Outcome]) -> None:
    found = compressor("inspect", folder / "model")
    assert found.code == 0, found.err
    assert "3 layers x 4 heads of 2 queries x 48 FFN" in found.out
    assert "text-generation" in found.out


def test_a_language_model_is_finetuned_with_its_own_head(
    folder: Path, tmp_path: Path, compressor: Callable[..., Outcome]
) -> None:
    found = compressor(
        "finetune", folder / "model", folder, "--output", tmp_path / "tuned", "--store", tmp_path,
        "--set", "epochs=1", "--set", "batch_size=16",
    )  # fmt: skip
    assert found.code == 0, found.err
    tuned = json.loads((tmp_path / "tuned" / "config.json").read_text())
    assert tuned["architectures"] == ["LlamaForCausalLM"]
