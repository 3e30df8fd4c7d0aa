"""What users get wrong, through the command line: exit code, and a message that says what to do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compressor.report.files import read_report
from compressor.store import RunStore

Break = Callable[[Path], object]


@pytest.fixture
def user(home, tmp_path) -> Path:
    """A copy of everything a user has, to break."""
    folder = tmp_path / "user"
    shutil.copytree(home, folder)
    return folder


def edit_config(**changes: object) -> Break:
    def change(user: Path) -> None:
        path = user / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def edit_recipe(old: str, new: str) -> Break:
    def change(user: Path) -> None:
        path = user / "recipe.yaml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def write(name: str, text: str) -> Break:
    return lambda user: (user / name).write_text(text)


def truncate(user: Path) -> None:
    path = user / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def garbage(user: Path) -> None:
    (user / "model" / "model.safetensors").write_bytes(b"not a model at all")


def only_a_pickle(user: Path) -> None:
    (user / "model" / "model.safetensors").rename(user / "model" / "pytorch_model.bin")


def only_adapters(user: Path) -> None:
    (user / "model" / "config.json").rename(user / "model" / "adapter_config.json")


def with_nan(user: Path) -> None:
    path = user / "model" / "model.safetensors"
    tensors = {name: np.array(value) for name, value in load_file(path).items()}
    tensors["classifier.weight"][0, 0] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})


VALIDATE: dict[str, tuple[Break, int, tuple[str, ...]]] = {
    "no checkpoint": (
        lambda user: shutil.rmtree(user / "model"),
        3,
        ("the checkpoint does not exist", "where:", "/model", "fix:"),
    ),
    "no config": (
        lambda user: (user / "model" / "config.json").unlink(),
        3,
        ("it has no config.json", "fix:"),
    ),
    "adapters": (
        only_adapters,
        3,
        (
            "adapters of a model, but not the model itself",
            "adapter_config.json",
            "merge_and_unload",
        ),
    ),
    "a network of timm": (
        edit_config(model_type="timm_wrapper", architecture="resnet18.a1_in1k"),
        3,
        (
            "a network of the library timm",
            "given: resnet18.a1_in1k",
            "is part of transformers",
        ),
    ),
    "quantized weights": (
        edit_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        3,
        ("are quantized already", "quantization_config", "given: gptq", "dequantize()"),
    ),
    "several labels": (
        edit_config(problem_type="multi_label_classification"),
        3,
        ("does not assign exactly one label", "problem_type", "compressor finetune"),
    ),
    "truncated weights": (truncate, 3, ("model.safetensors", "fix:")),
    "weights that are none": (garbage, 3, ("model.safetensors", "fix:")),
    "a pickle": (only_a_pickle, 3, ("are a pickle", "pytorch_model.bin", "fix:")),
    "no head": (
        edit_config(architectures=["BertModel"]),
        3,
        ("no head for this task", "given: BertModel", "compressor finetune"),
    ),
    "another head": (
        edit_config(architectures=["BertForMaskedLM"]),
        3,
        ("no head for this task", "given: BertForMaskedLM", "compressor finetune"),
    ),
    "no data file": (
        lambda user: (user / "test.csv").rename(user / "tests.csv"),
        3,
        ("the file does not exist", "data.test", "did you mean 'tests.csv'?"),
    ),
    "empty data": (write("train.csv", ""), 3, ("the file is empty", "train.csv", "fix:")),
    "a header only": (write("test.csv", "text,label\n"), 3, ("no rows", "test.csv", "fix:")),
    "one class": (
        write("train.csv", "text,label\nwho cat,person\nwho dog,person\n"),
        3,
        ("one class only", "2 rows, all 'person'", "fix:"),
    ),
    "no label column": (
        edit_recipe("test: test.csv}", "test: test.csv, label: lable}"),
        3,
        ("the label column 'lable' is missing", "columns text, label", "did you mean 'label'?"),
    ),
    "unknown labels": (
        write("test.csv", "text,label\nwho cat,person\nwhere dog,plcae\n"),
        3,
        ("labels that the model does not know", "'plcae' (1 row)", "the model knows 'person'"),
    ),
    "a row without text": (
        write("test.csv", "text,label\nwho cat,person\n,place\n"),
        3,
        ("a row has no text or no label", "row 2", "fix:"),
    ),
    "no calibration samples": (
        edit_recipe("num_samples: 32", "num_samples: 0"),
        3,
        ("greater than or equal to 1", "variants.int8.0.num_samples", "given: 0"),
    ),
    "no head left": (
        edit_recipe("ratio: 0.5", "heads: 1.0"),
        3,
        ("passes.1", "given:"),
    ),
    "quantize before export": (
        edit_recipe("  - export", "  - quantize"),
        3,
        ("quantize needs a model in onnx form", "passes.3", "put '- pass: export' before it"),
    ),
    "an unknown pass": (
        edit_recipe("pass: distill", "pass: distil"),
        3,
        ("there is no pass 'distil'", "passes.2.pass", "did you mean 'distill'?", "known:"),
    ),
    "an unknown setting": (
        edit_recipe("epochs: 3", "epoch: 3"),
        3,
        ("there is no setting 'epoch'", "passes.2.epoch", "did you mean 'epochs'?"),
    ),
    "an unknown target": (
        edit_recipe("openvino", "openvno"),
        3,
        ("there is no target 'openvno'", "targets.1.target", "did you mean 'openvino'?"),
    ),
    "NaN weights": (with_nan, 3, ("NaN or infinite", "classifier.weight", "fix:")),
    "a benchmark longer than the model takes": (
        edit_recipe("sequence_length: 16", "sequence_length: 64"),
        3,
        ("longer than the model takes", "benchmark.sequence_length", "given: 64", "=32"),
    ),
    "no recipe": (
        lambda user: (user / "recipe.yaml").unlink(),
        3,
        ("the file does not exist", "recipe.yaml", "fix:", "balanced"),
    ),
    "a recipe that is no YAML": (
        write("recipe.yaml", "a: [1"),
        3,
        ("not valid YAML", "line 1", "fix:"),
    ),
}


@pytest.mark.parametrize("case", VALIDATE)
def test_a_mistake_is_found_before_anything_starts(case, user, compressor):
    damage, code, fragments = VALIDATE[case]
    damage(user)
    outcome = compressor("validate", user / "recipe.yaml")
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    for fragment in fragments:
        assert fragment in outcome.err, outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_tokenizer_is_found_before_anything_is_loaded(user, compressor):
    (user / "model" / "tokenizer.json").unlink()
    outcome = compressor("validate", user / "recipe.yaml")
    assert outcome.code == 3, outcome.err
    for fragment in ("the checkpoint has no tokenizer", "tokenizer.json", "fix:"):
        assert fragment in outcome.err


def test_all_problems_are_listed_apart_from_each_other(user, compressor):
    edit_recipe("epochs: 3", "epoch: 3")(user)
    edit_recipe("openvino", "openvno")(user)
    error = compressor("validate", user / "recipe.yaml").err
    assert error.startswith("error: the recipe has 2 problems\n  where: ")
    first, second = error.split("\n\n")[1:]
    assert first.startswith("  1. there is no setting 'epoch'\n       where: passes.2.epoch\n")
    assert second.startswith("  2. there is no target 'openvno'\n       where: targets.1.target\n")


def test_debug_shows_the_traceback(user, compressor):
    (user / "recipe.yaml").unlink()
    outcome = compressor("validate", user / "recipe.yaml", "--debug")
    assert outcome.code == 3
    assert "Traceback" in outcome.err
    assert "RecipeError" in outcome.err


def test_a_bug_says_so_and_exits_1(user, compressor, monkeypatch):
    from compressor import planning

    monkeypatch.setattr(planning, "validate_recipe", lambda recipe: 1 / 0)
    outcome = compressor("validate", user / "recipe.yaml")
    assert outcome.code == 1
    assert "unexpected ZeroDivisionError" in outcome.err
    assert "this is a bug" in outcome.err


def test_a_wrong_command_line_exits_2(compressor):
    assert compressor("run").code == 2
    assert compressor("run", "balanced", "--no-such-option").code == 2


def test_an_interruption_exits_130_and_says_that_nothing_is_lost(user, compressor, monkeypatch):
    from compressor import planning

    def interrupt(recipe: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "validate_recipe", interrupt)
    outcome = compressor("validate", user / "recipe.yaml")
    assert outcome.code == 130
    assert "interrupted; finished work is kept" in outcome.err


def test_texts_longer_than_the_model_takes_are_counted_and_cut(user, tmp_path):
    from compressor.manager import import_checkpoint
    from compressor.progress import Silent
    from compressor.recipe import load_recipe

    class Told(Silent):
        line = ""

        def finish(self, line: str, *, cached: bool) -> None:
            self.line = line

    with (user / "train.csv").open("a") as stream:
        stream.write(f"who {'cat ' * 40},person\nwhere {'dog ' * 29},place\n")
        stream.write(f"where {'dog ' * 30},place\n")  # 31 words with [CLS] and [SEP]: one too many
    from compressor.data import data_fingerprint, read_splits

    spec = load_recipe(user / "recipe.yaml").data
    for _ in ("made", "cached"):
        told = Told()
        import_checkpoint(
            user / "model",
            task="text-classification",
            max_length=None,
            store=RunStore(tmp_path / "store"),
            splits=lambda: read_splits(spec, label_names=("person", "place", "time")),
            data_hash=data_fingerprint(spec),
            progress=told,
        )
        assert told.line.endswith("; NOTE: 2 of 207 texts are cut to 32 tokens")


@pytest.fixture
def store(finished, tmp_path) -> Path:
    """A copy of the store of a whole run, to break."""
    shutil.copytree(finished.store, tmp_path / "store")
    return tmp_path / "store"


ONLY_TENSORRT = ("--set", "targets=[tensorrt]")


def test_a_missing_runtime_is_a_row_and_alone_it_exits_6_with_the_reason(
    finished, home, tmp_path, compressor
):
    outcome = compressor(
        "run", home / "recipe.yaml", "--store", finished.store, "--output", tmp_path,
        *ONLY_TENSORRT,
    )  # fmt: skip
    assert outcome.code == 6
    text = " ".join(outcome.out.replace("│", " ").split())
    assert "tensorrt is not installed: pip install 'compressor[tensorrt]'" in text
    assert "no candidate could be measured on this machine" in text
    rows = [row for row in read_report(tmp_path).rows if row.kind == "candidate"]
    assert {row.status for row in rows} == {"unavailable"}


def test_a_damaged_step_exits_8_and_the_command_it_names_mends_it(
    finished, home, store, tmp_path, compressor
):
    step = next(
        each
        for each in RunStore(store).steps()
        if each.kind == "pass:quantize" and each.inputs["settings"]["method"] == "static"
    )
    path = store / "steps" / step.key / "files" / "model.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)

    arguments = ("run", home / "recipe.yaml", "--store", store, "--output", tmp_path / "out")
    outcome = compressor(*arguments, *ONLY_TENSORRT)
    assert outcome.code == 8, outcome.err
    assert str(path) in outcome.err
    command = re.search(r"`compressor (.*?)`", outcome.err)
    assert command is not None
    assert compressor(*shlex.split(command[1])).code == 0

    outcome = compressor(*arguments, *ONLY_TENSORRT)
    assert outcome.code == 6, outcome.err
    made = [each for chain in read_report(tmp_path / "out").steps.values() for each in chain]
    assert {each.key for each in made if not each.cached} == {step.key}
    # Made anew, it is the same: a step depends on nothing but its inputs.
    again = next(each for each in RunStore(store).steps() if each.key == step.key)
    assert again.files == step.files


@pytest.mark.slow
def test_a_model_too_large_for_one_file_goes_through_with_its_weights_beside_it(
    finished, home, tmp_path, compressor
):
    outcome = compressor(
        "run", home / "recipe.yaml", "--store", finished.store, "--output", tmp_path,
        "--set", "passes.3.single_file_limit_bytes=0",
        "--set", "targets=[onnxruntime, openvino]",
        "--set", "variants={int8: [{pass: quantize, method: static, num_samples: 32}]}",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    report = read_report(tmp_path)
    whole = read_report(finished.output)
    for row in report.rows:
        twin = next(
            each
            for each in whole.rows
            if (each.variant, each.target, each.precision)
            == (row.variant, row.target, row.precision)
        )
        assert row.status == "measured", row.reason
        assert row.test == twin.test
    exported = next(step for step in report.steps["int8"] if "num_nodes" in step.metrics)
    record = next(r for r in RunStore(finished.store).steps() if r.key == exported.key)
    assert "model.onnx.data" in record.files
