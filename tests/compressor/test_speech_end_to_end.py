"""Speech and translation from the command line: a checkpoint and data, to bundles that write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from targets.bundle import Bundle
from targets.errors import BundleError, InputError, TargetError
from targets.evaluation_pack import EvaluationPack
from targets.generation import load_generator
from targets.load_scenario import LoadSettings
from targets.loadgen import run_load
from targets.registry import open_session
from targets.writing import check_writes
from tests.compressor.conftest import Outcome
from tests.compressor.marian import write_marian
from tests.compressor.writers import SPEECH, TRANSLATION, write_writer

RECIPE = """
model: model
task: {task}
data: {{train: train.csv, validation: validation.csv, test: test.csv}}
passes:
{window}  - {{pass: drop_layers, stack: decoder, num_layers: 1}}
  - {{pass: prune, ffn: 0.5, examples: 16}}
  - {{pass: distill, epochs: 1, batch_size: 8, augmentation: 0.1}}
  - export
variants:
  int8: [{{pass: quantize, method: static, num_samples: 16}}]
targets: {targets}
budget: {{max_accuracy_drop: 100, require: any}}
bundle: {{evaluation_data: true}}
benchmark:
  {{rounds: 2, min_round_s: 0.001, pause_s: 0, batch_sizes: [1], sequence_length: {length}}}
output: out
"""
FAMILIES = {
    "whisper": (SPEECH, "[onnxruntime, openvino, pytorch, tensorrt_rtx]", "word accuracy", 8000),
    "whisper, variable window": (SPEECH, "[onnxruntime, openvino]", "word accuracy", 8000),
    "flan-t5": (TRANSLATION, "[onnxruntime, openvino]", "chrF", 16),
    "marian": (TRANSLATION, "[onnxruntime, openvino]", "chrF", 16),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def home(
    family: str,
    tmp_path_factory: pytest.TempPathFactory,
    compressor: Callable[..., Outcome],
) -> Path:
    folder = tmp_path_factory.mktemp(family)
    name, _, window = family.partition(", ")
    if name == "marian":
        write_marian(folder)
    else:
        write_writer(folder, name)
    task, names, _, length = FAMILIES[family]
    window = "  - {pass: variable_window, step: 0.25}\n" if window else ""
    recipe = RECIPE.format(task=task, targets=names, length=length, window=window)
    (folder / "recipe.yaml").write_text(recipe)
    outcome = compressor("run", folder / "recipe.yaml", "--store", folder / "store")
    assert outcome.code == 0, outcome.err + outcome.out
    return folder


def is_speech(family: str) -> bool:
    return FAMILIES[family][0] == SPEECH


def bundles(home: Path) -> list[Path]:
    return sorted((home / "out" / "bundles").iterdir())


def given(home: Path, family: str) -> tuple[Any, ...]:
    return ("--file", home / "sounds" / "test0.wav") if is_speech(family) else ("--text", "w1 w2")


def test_every_row_is_judged_and_timed(home: Path, family: str) -> None:
    report = json.loads((home / "out" / "report.json").read_text())
    for row in report["rows"]:
        if row["target"] == "tensorrt_rtx":
            assert "does not run models that keep a state" in row["reason"]
            assert "use another target" in row["reason"]
        elif row["status"] != "refused":
            assert row["status"] == "measured", row["reason"]
            assert row["test"]["measure"] == FAMILIES[family][2]


def test_all_runtimes_write_the_same(home: Path, family: str) -> None:
    """But for what int8 changes, of which there is none in what was lowered from one graph."""
    report = json.loads((home / "out" / "report.json").read_text())
    untouched = [
        row["test"]["value"]
        for row in report["rows"]
        if row["variant"] == "original" and row["precision"] == "fp32" and row["test"]
    ]
    assert len(untouched) > 1
    np.testing.assert_allclose(untouched, untouched[0], atol=1e-9)


def test_a_bundle_writes_texts(home: Path, family: str, compressor: Callable[..., Outcome]) -> None:
    for bundle in bundles(home):
        outcome = compressor("predict", bundle, *given(home, family))
        assert outcome.code == 0, outcome.err
        found = json.loads(outcome.out)
        assert set(found) == {"text", "truncated"}
        if family != "marian":
            assert all(word.startswith(("w", "<")) for word in found["text"].split())
        with targets.load(bundle) as predictor:
            source = given(home, family)[1]
            [again] = predictor.predict([str(source)])
        assert again.text == found["text"]


def test_evaluate_finds_what_was_built(
    home: Path, family: str, compressor: Callable[..., Outcome]
) -> None:
    for bundle in bundles(home)[:2]:
        outcome = compressor("evaluate", bundle)
        assert outcome.code == 0, outcome.err
        lines = {name: rest.strip() for name, _, rest in map(_cut, outcome.out.splitlines())}
        assert lines[f"{FAMILIES[family][2]} here"] == lines["when it was built"]
        assert ("x real time" in outcome.out) == (is_speech(family))


def _cut(line: str) -> tuple[str, str, str]:
    return line.partition(":")


def test_writing_is_timed(home: Path, family: str, compressor: Callable[..., Outcome]) -> None:
    bundle = bundles(home)[0]
    length = ("--sequence-length", FAMILIES[family][3])
    outcome = compressor("bench", bundle, "--write", 3, "--rounds", 2, "--batch-size", 1, *length)
    assert outcome.code == 0, outcome.err
    assert "first token after" in outcome.out
    longest = Bundle.open(bundle).manifest.answers.longest  # type: ignore[union-attr]
    with pytest.raises(InputError, match="longer than the model can write"):
        check_writes(Bundle.open(bundle), prompt_tokens=1, num_tokens=longest + 1)


def test_what_answers_with_one_run_or_a_text_alone_is_refused(
    home: Path, compressor: Callable[..., Outcome], tmp_path: Path
) -> None:
    bundle = Bundle.open(bundles(home)[0])
    with pytest.raises(BundleError, match="a text about an input; it does not continue texts"):
        load_generator(bundle.folder)
    session = open_session(bundle)
    pack = EvaluationPack.load(bundle.path(str(bundle.manifest.evaluation)))
    settings = LoadSettings.model_construct()
    with pytest.raises(TargetError, match="a load scenario answers each query with one run"):
        run_load(session, pack, settings, tmp_path, threads=1)
    session.close()
    outcome = compressor("package", bundle.folder, "--for", "triton", "--output", tmp_path / "x")
    assert outcome.code != 0
    assert "use --for docker" in outcome.err or "does not run bundles" in outcome.err
