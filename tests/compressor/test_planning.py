"""Planning: everything that is wrong at once, before anything expensive begins."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from compressor.errors import RecipeError
from compressor.planning import make_plan, validate_recipe
from compressor.recipe import Recipe, load_recipe
from compressor.recipe.load import validate_document
from compressor.tasks import get_task
from targets import environment
from targets.errors import ToolkitError
from targets.registry import available
from tests.compressor.writers import write_writer

CONFIG: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "id2label": {"0": "cat", "1": "dog"},
}


class Workplace:
    """A folder with a checkpoint, data, and recipes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.checkpoint.mkdir()
        self.write_config()
        save_file({"a": np.zeros(3, np.float32)}, self.checkpoint / "model.safetensors")
        self.write_data("train", [("meow", "cat"), ("woof", "dog")] * 4)
        self.write_data("test", [("purr", "cat"), ("bark", "dog")] * 4)

    def write_config(self, **changes: Any) -> None:
        (self.checkpoint / "config.json").write_text(json.dumps(CONFIG | changes))
        (self.checkpoint / "tokenizer.json").write_text("{}")

    def write_data(self, name: str, rows: list[tuple[str, str]]) -> None:
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (self.folder / f"{name}.csv").write_text("\n".join(lines) + "\n")

    def recipe(self, **changes: Any) -> Recipe:
        document = {
            "model": "checkpoint",
            "data": {"train": "train.csv", "test": "test.csv"},
            "passes": ["export"],
            "targets": ["onnxruntime"],
            "budget": {"min_speedup": 2},
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document | changes))
        return load_recipe(path)

    def problems(self, check: Any = make_plan, **changes: Any) -> list[ToolkitError]:
        with pytest.raises(RecipeError) as caught:
            check(self.recipe(**changes))
        return list(caught.value.problems)

    def problem(self, check: Any = make_plan, **changes: Any) -> ToolkitError:
        (problem,) = self.problems(check, **changes)
        return problem


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


# A plan


def test_a_plan_tells_the_shape_after_every_pass(place: Workplace) -> None:
    plan = make_plan(
        place.recipe(
            passes=[{"pass": "prune", "ratio": 0.5}, {"pass": "drop_layers", "num_layers": 2}],
            variants={"fp32": ["export"], "int8": ["export", "quantize"]},
        )
    )
    assert plan.original.describe() == "4 layers x 4 heads x 128 FFN, hidden 64, vocabulary 100"
    assert [step.outcome.describe() for step in plan.chains["fp32"]] == [
        "4 layers x 2 heads x 64 FFN, hidden 64, vocabulary 100",
        "2 layers x 2 heads x 64 FFN, hidden 64, vocabulary 100",
        "2 layers x 2 heads x 64 FFN, hidden 64, vocabulary 100",
    ]
    assert [step.step.name for step in plan.chains["int8"]] == [
        "prune",
        "drop_layers",
        "export",
        "quantize",
    ]
    assert plan.warnings == ()


def test_a_plan_rounds_widths_to_the_groups_of_4_bits(place: Workplace) -> None:
    weights = {"pass": "quantize", "method": "weights", "weight_bits": 4, "group_size": 32}
    recipe = place.recipe(
        passes=[{"pass": "prune", "ffn": 0.3}, "export"],
        variants={"fp32": [], "int4": [weights]},
        targets=["onnxruntime"],
    )
    assert recipe.width_multiple == 32
    pruned = make_plan(recipe).chains["fp32"][0]
    assert all(layer.ffn_width % 32 == 0 for layer in pruned.outcome.layers)


def test_a_plan_rounds_widths_to_what_every_target_likes(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(available()["onnxruntime"], "width_multiple", 12)
    recipe = place.recipe(
        passes=[{"pass": "prune", "ffn": 0.5}, "export"], targets=["onnxruntime", "openvino"]
    )
    assert recipe.width_multiple == 24
    (pruned, _) = make_plan(recipe).chains["compressed"]
    assert {layer.ffn_width for layer in pruned.outcome.layers} == {72}


def test_baselines_cover_every_native_precision_fp32_first(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = available()["openvino"]
    monkeypatch.setattr(cls, "native_precisions", lambda self: ("bf16", "fp32"))
    plan = make_plan(
        place.recipe(passes=[{"pass": "export", "opset": 20}], targets=["openvino", "onnxruntime"])
    )
    assert list(plan.baselines) == ["fp32", "bf16"]
    # The baseline is exported as the candidates are.
    assert [each.settings().get("opset") for each in plan.baselines["fp32"]] == [20]
    assert [each.name for each in plan.baselines["bf16"]] == ["export", "quantize"]
    assert plan.baselines["bf16"][1].settings()["method"] == "bf16"


def test_a_target_that_takes_torch_needs_no_export(place: Workplace) -> None:
    plan = make_plan(place.recipe(passes=[], targets=["pytorch"]))
    assert plan.chains == {"compressed": ()}


# The order of the passes


def test_a_pass_before_the_export_it_needs(place: Workplace) -> None:
    problem = place.problem(passes=["quantize"])
    assert problem.what == (
        "quantize needs a model in onnx form, but the passes before it leave one in torch form"
    )
    assert problem.where == "passes.0"
    assert problem.given == "quantize"
    assert problem.fix == "put '- pass: export' before it"


def test_a_pass_after_the_export_that_it_had_to_come_before(place: Workplace) -> None:
    problem = place.problem(passes=["export", {"pass": "prune", "ratio": 0.5}, "quantize"])
    assert problem.where == "passes.1"
    assert problem.what.startswith("prune needs a model in torch form")
    assert problem.given == "export > prune > quantize"
    assert problem.fix == "move prune before the export"


def test_wrong_orders_of_all_variants_are_reported_at_once(place: Workplace) -> None:
    found = place.problems(
        passes=[],
        variants={
            "a": ["export", {"pass": "prune", "ratio": 0.5}],
            "b": ["quantize", "export"],
            "c": ["export", "quantize"],
            "d": ["export", "export"],
        },
    )
    assert [(each.where, each.fix) for each in found] == [
        ("variants.a.1", "move prune before the export"),
        ("variants.b.0", "put '- pass: export' before it"),
        ("variants.d.1", "remove it: the model is in onnx form already"),
    ]


def test_a_problem_of_shared_passes_is_reported_once(place: Workplace) -> None:
    found = place.problems(
        passes=["quantize"], variants={"a": [], "b": ["export"], "c": ["export", "quantize"]}
    )
    assert [each.where for each in found] == ["passes.0"]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"passes": []}, "passes"),
        ({"passes": [{"pass": "prune", "ratio": 0.5}]}, "passes"),
        ({"passes": [], "variants": {"a": ["export"], "b": None}}, "variants.b"),
    ],
)
def test_a_chain_that_ends_before_the_export(
    place: Workplace, changes: dict[str, Any], where: str
) -> None:
    problem = place.problem(**changes)
    assert problem.what == "the passes leave a torch model, but ONNX is needed by onnxruntime"
    assert problem.where == where
    assert "end with '- pass: export'" in str(problem.fix)


# Shapes


def test_a_ratio_that_leaves_no_head(place: Workplace) -> None:
    problem = place.problem(passes=[{"pass": "prune", "heads": 0.95}, "export"])
    assert problem.what == "layer 0 has 4 heads, and pruning would leave none"
    assert problem.where == "passes.0"
    assert problem.fix == "use at most 0.75"


def test_a_ratio_that_leaves_no_head_in_shared_passes_is_reported_once(place: Workplace) -> None:
    found = place.problems(
        passes=[{"pass": "prune", "heads": 0.95}, "export"],
        variants={"a": [], "b": ["quantize"]},
    )
    assert [each.where for each in found] == ["passes.0"]


def test_more_layers_than_there_are(place: Workplace) -> None:
    problem = place.problem(passes=[{"pass": "drop_layers", "num_layers": 9}, "export"])
    assert problem.where == "passes.0"
    assert "4" in str(problem)


def test_passes_are_planned_on_what_the_passes_before_leave(place: Workplace) -> None:
    problem = place.problem(
        passes=[
            {"pass": "drop_layers", "num_layers": 2},
            {"pass": "drop_layers", "num_layers": 3},
            "export",
        ]
    )
    assert problem.where == "passes.1"


@pytest.mark.parametrize("max_length", [None, 64])
def test_a_benchmark_longer_than_the_model_takes(place: Workplace, max_length: int | None) -> None:
    data = {"train": "train.csv", "test": "test.csv", "max_length": max_length}
    limit = max_length or 128
    problem = place.problem(data=data, benchmark={"sequence_length": limit + 1})
    assert problem.where == "benchmark.sequence_length"
    assert problem.fix == f"use at most {limit}: --set benchmark.sequence_length={limit}"
    make_plan(place.recipe(data=data, benchmark={"sequence_length": limit}))


def speech_recipe(folder: Path, **values: Any) -> Recipe:
    write_writer(folder)
    paths = {f"data.{name}": str(folder / f"{name}.csv") for name in ("train", "test")}
    return load_recipe("speech", values={"model": str(folder / "model"), **paths, **values})


def test_a_benchmark_longer_than_recordings_may_be(tmp_path: Path) -> None:
    recipe = speech_recipe(tmp_path, **{"benchmark.sequence_length": 10**7})
    with pytest.raises(RecipeError) as caught:
        make_plan(recipe)
    found = {each.where: each for each in caught.value.problems}
    limit = get_task(recipe.task).read_length(recipe.model)
    assert limit > 0
    assert str(found["benchmark.sequence_length"].fix).startswith(f"use at most {limit}:")


def test_more_recordings_without_texts_are_refused_before_any_work(tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("a.wav\n")
    passes = [{"pass": "distill", "unlabeled": str(more)}, "export"]
    recipe = speech_recipe(tmp_path, **{"passes": passes, "benchmark.sequence_length": 1})
    with pytest.raises(RecipeError, match="cannot learn from inputs without target texts"):
        make_plan(recipe)


def test_entities_are_limited_where_labels_are_such(place: Workplace) -> None:
    budget = {"max_metric_drop": {"entity_f1": 1}}
    names = {"task": "token-classification", "budget": budget}
    place.write_config(
        architectures=["BertForTokenClassification"], id2label={"0": "NOUN", "1": "VERB"}
    )
    with pytest.raises(RecipeError) as caught:
        make_plan(place.recipe(**names))
    assert [each.where for each in caught.value.problems] == ["budget.max_metric_drop.entity_f1"]
    place.write_config(
        architectures=["BertForTokenClassification"], id2label={"0": "O", "1": "B-PER"}
    )
    make_plan(place.recipe(**names))


def test_a_max_length_above_the_model_s_own(place: Workplace) -> None:
    data = {"train": "train.csv", "test": "test.csv", "max_length": 129}
    problem = place.problem(data=data)
    assert problem.where == "data.max_length"
    assert problem.given == "129"
    assert problem.fix == "use at most 128: --set data.max_length=128"


# Files


def test_missing_files_name_the_nearest(place: Workplace) -> None:
    found = place.problems(
        data={"train": "trian.csv", "test": "none/test.csv", "validation": "quite_else.json"}
    )
    assert [(each.where, each.fix) for each in found] == [
        ("data.train", "did you mean 'train.csv'? correct the path"),
        ("data.validation", "correct the path"),
        ("data.test", "correct the path"),
    ]
    assert found[0].given == str(place.folder / "trian.csv")


def test_a_model_that_is_not_there(place: Workplace) -> None:
    problem = place.problem(model="nothing")
    assert problem.what == "the checkpoint does not exist"
    assert problem.where == str(place.folder / "nothing")


def test_a_model_without_the_task_s_head(place: Workplace) -> None:
    place.write_config(architectures=["BertModel"])
    problem = place.problem()
    assert problem.what == (
        "the checkpoint has no head for this task; without a head it is for text-embedding"
    )
    assert (problem.where, problem.given) == ("task", "BertModel for text-classification")
    assert problem.fix == "fine-tune first: compressor finetune; or set task: text-embedding"
    make_plan(place.recipe(task="text-embedding"))
    place.write_config(architectures=["BertForMaskedLM"])
    problem = place.problem()
    assert "no head for this task" in problem.what
    assert problem.fix == "fine-tune first: compressor finetune"


@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("SequenceClassification", "text-classification"),
        ("TokenClassification", "token-classification"),
        ("QuestionAnswering", "question-answering"),
    ],
)
def test_the_head_of_a_checkpoint_tells_the_task(place: Workplace, head: str, task: str) -> None:
    place.write_config(architectures=[f"BertFor{head}"])
    recipe = place.recipe()
    assert recipe.model_dump(mode="json")["task"] == recipe.task == task


def test_a_recipe_for_another_task_than_that_of_the_checkpoint(place: Workplace) -> None:
    place.write_config(architectures=["BertForTokenClassification"])
    problem = place.problem(task="question-answering")
    assert problem.what == (
        "the checkpoint is for token-classification, but the recipe has another task"
    )
    assert (problem.where, problem.given) == ("task", "question-answering")
    assert problem.fix == (
        "use the recipe words or int8, or set task: token-classification in one of your own"
    )


def test_a_pass_that_is_not_for_the_model(place: Workplace) -> None:
    place.write_config(architectures=["BertLMHeadModel"])
    problem = place.problem(passes=["trim_vocabulary", "export"])
    assert problem.where == "passes.0"
    assert problem.what == (
        "trim_vocabulary cannot be used on this model: it writes text, so any token may be needed"
    )
    assert problem.fix == "remove it, or use the built-in recipe generation or int8"


def test_a_config_of_another_kind_of_network(place: Workplace) -> None:
    place.write_config(num_attention_heads=None)
    recipe = place.recipe(passes=["trim_vocabulary", "export"])
    [warning] = [each for each in make_plan(recipe).warnings if "unknown kind" in each]
    assert warning.startswith("the layers of this network (bert) are of an unknown kind")
    problem = place.problem(passes=[{"pass": "prune", "ratio": 0.5}, "export"])
    assert problem.what == ("prune cannot be used on this model: its layers are of an unknown kind")
    nameless = {name: value for name, value in CONFIG.items() if name != "model_type"}
    (place.checkpoint / "config.json").write_text(json.dumps(nameless))
    problem = place.problem()
    assert problem.what == "the config does not say which network this is"
    assert "model_type" in str(problem.given)


def test_everything_that_is_wrong_is_reported_at_once(place: Workplace) -> None:
    found = place.problems(
        validate_recipe,
        data={"train": "trian.csv", "test": "test.csv", "max_length": 500},
        passes=[{"pass": "prune", "heads": 0.95}, "quantize"],
        benchmark={"sequence_length": 999},
        targets=["onnxruntime", "onnxruntime"],
    )
    assert [each.where for each in found] == [
        "data.train",
        "passes.1",
        "passes.0",
        "targets.1",
        "benchmark.sequence_length",
        "data.max_length",
    ]


# Targets and libraries


def test_an_output_folder_that_cannot_be_written_is_found_first(place: Workplace) -> None:
    (place.folder / "file").write_text("x")
    for output, reason in (("file/out", "is a file"), ("/proc/nowhere", "/proc: ")):
        (problem,) = place.problems(output=output)
        assert problem.what == "the output folder cannot be written"
        assert (problem.where, problem.fix) == ("output", "name another folder: --output FOLDER")
        assert reason in str(problem.given)
    (problem,) = place.problems(output="checkpoint")
    assert "that of the model or the data" in problem.what
    make_plan(place.recipe(output="new/folder"))
    assert not (place.folder / "new").exists()


@pytest.mark.parametrize(
    ("budget", "where", "fix"),
    [
        (
            {"targets": {"onnxruntme": {"max_size_mb": 1}}},
            "budget.targets.onnxruntme",
            "did you mean 'onnxruntime'?",
        ),
        ({"devices": {"pi": {"max_latency_ms": 1}}}, "budget.devices", "set devices: FILE"),
        ({"max_slice_drop": 3}, "budget.max_slice_drop", "name columns of the test file"),
        ({"max_perplexity_rise": 3}, "budget.max_perplexity_rise", "use max_accuracy_drop"),
        (
            {"targets": {"onnxruntime": {"max_metric_drop": {"entity_f1": 1}}}},
            "budget.targets.onnxruntime.max_metric_drop.entity_f1",
            "use accuracy, balanced_accuracy, macro_f1, mean_iou",
        ),
        (
            {"targets": {"onnxruntime": {"max_slice_drop": 3}}},
            "budget.targets.onnxruntime.max_slice_drop",
            "name columns of the test file",
        ),
    ],
)
def test_a_limit_on_what_is_not_measured_is_a_problem(
    place: Workplace, budget: dict[str, Any], where: str, fix: str
) -> None:
    problem = place.problem(budget=budget)
    assert problem.where == where
    assert fix in str(problem.fix)


def test_a_limit_for_a_device_that_is_not_named(place: Workplace, tmp_path: Path) -> None:
    devices = tmp_path / "devices.yaml"
    devices.write_text("board:\n  address: ssh://me@127.0.0.1\n")
    limits = {"devices": {"bord": {"max_latency_ms": 1}}}
    problem = place.problem(budget=limits, devices=str(devices))
    assert problem.where == "budget.devices.bord"
    assert problem.fix == "did you mean 'board'? use board"


def test_two_targets_of_one_name(place: Workplace) -> None:
    problem = place.problem(targets=["openvino", "onnxruntime", "openvino"])
    assert problem.where == "targets.2"
    assert problem.given == "openvino, as in targets.0"
    make_plan(place.recipe(targets=["openvino", {"target": "openvino", "device": "GPU"}]))


def test_a_missing_library_names_its_users_and_the_extra(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ("torch-pruning", "onnx")
    monkeypatch.setattr(environment, "_version", lambda name: None if name in absent else "1")
    found = place.problems(
        passes=[{"pass": "prune", "ratio": 0.5}, "export"],
        variants={"a": [], "b": ["quantize"]},
    )
    assert [each.what for each in found] == [
        "the library torch-pruning is not installed",
        "the library onnx is not installed",
    ]
    assert [each.given for each in found] == ["needed by prune", "needed by export, quantize"]
    assert found[0].fix == "pip install 'compressor[build]'"


def test_targets_that_cannot_build_or_run_here_are_warned_of(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = available()
    monkeypatch.setattr(known["openvino"], "cannot_lower", lambda self: "openvino is missing")
    monkeypatch.setattr(known["openvino"], "cannot_run", lambda self: "not asked")
    monkeypatch.setattr(known["onnxruntime"], "cannot_lower", lambda self: None)
    monkeypatch.setattr(known["onnxruntime"], "cannot_run", lambda self: "no such CPU")
    recipe = place.recipe(
        targets=["onnxruntime", {"target": "openvino", "device": "GPU"}], budget={"require": "any"}
    )
    assert make_plan(recipe).warnings == (
        "onnxruntime: a bundle is built, but not measured: no such CPU",
        "openvino (GPU): no bundle can be built here: openvino is missing",
        "the budget is empty: every bundle that can be built passes",
    )


@pytest.mark.parametrize(
    "budget",
    [
        {"max_accuracy_drop": 0},
        {"min_speedup": 1},
        {"max_latency_ms": 1},
        {"max_size_mb": 1},
        {"min_size_ratio": 1},
    ],
)
def test_a_budget_with_any_limit_is_not_empty(place: Workplace, budget: dict[str, float]) -> None:
    assert make_plan(place.recipe(budget=budget)).warnings == ()


def test_a_variant_that_a_target_never_runs_is_warned_of(place: Workplace) -> None:
    quantized = {name: [{"pass": "quantize", "method": name}] for name in ("static", "dynamic")}
    recipe = place.recipe(targets=["onnxruntime", "openvino"], variants={"fp32": [], **quantized})
    assert [line for line in make_plan(recipe).warnings if "refuses" in line] == [
        "openvino refuses the variant dynamic (int8-dynamic): "
        "it has no integers with scales computed at run time"
    ]


@pytest.mark.parametrize(
    ("quantize", "told"),
    [
        ({"calibration": "percentile", "percentile": 99.999}, None),
        ({"method": "dynamic"}, None),  # nothing is calibrated
        ({}, "percentile 99.999, not search"),
        (
            {"calibration": "percentile", "percentile": 99.9, "activations": "int8"},
            "activations uint8, not int8, percentile 99.999, not 99.9",
        ),
        (
            {"calibration": "percentile", "percentile": 99.999, "weight_bits": 7},
            "weight_bits 8, not 7",
        ),
    ],
)
def test_a_training_that_rounds_in_another_way_is_warned_of(
    place: Workplace, quantize: dict[str, Any], told: str | None
) -> None:
    recipe = place.recipe(
        passes=[{"pass": "distill", "quantization_aware": {}}, "export"],
        variants={"fp32": [], "int8": [{"pass": "quantize", **quantize}]},
    )
    found = [line for line in make_plan(recipe).warnings if "rounds in another way" in line]
    line = f"int8: the training with quantization_aware rounds in another way than quantize: {told}"
    assert found == ([] if told is None else [line])


# The data


def test_test_texts_in_the_training_data_are_warned_of(place: Workplace) -> None:
    place.write_data("train", [(f"meow {index}", "cat") for index in range(50)] + [("woof", "dog")])
    place.write_data("test", [("meow 1", "cat"), ("purr", "cat"), ("bark", "dog"), ("wag", "dog")])
    found = [each for each in validate_recipe(place.recipe()).warnings if "also in" in each]
    assert found == [
        "1 of 4 test texts are also in the training or validation data: "
        "the accuracy will look too good"
    ]
    place.write_data("test", [("purr", "cat"), ("bark", "dog")])
    warnings = validate_recipe(place.recipe()).warnings
    assert not [each for each in warnings if "also in" in each]


def test_figures_that_will_mislead_are_warned_of(place: Workplace) -> None:
    recipe = place.recipe(
        data={"train": "train.csv", "test": "./train.csv"}, benchmark={"threads": 1000}
    )
    warnings = make_plan(recipe).warnings
    assert any("data.test and data.train are the same file" in line for line in warnings)
    assert any("benchmark.threads is 1000, and there are" in line for line in warnings)


def test_the_data_is_checked_against_the_model(place: Workplace) -> None:
    place.write_data("test", [("meow", "cat"), ("moo", "cow")])
    problem = place.problem(validate_recipe)
    assert problem.what == "the data has labels that the model does not know"
    assert "'cow' (1 row)" in str(problem.given)
    assert "'cat', 'dog'" in str(problem.fix)


def test_the_data_is_checked_even_where_the_passes_are_wrong(place: Workplace) -> None:
    place.write_data("test", [("meow", "cat"), ("moo", "cow")])
    found = place.problems(validate_recipe, passes=["quantize"])
    assert [each.what.split()[0] for each in found] == ["quantize", "the"]
    assert "'cow'" in str(found[1])


def test_columns_are_checked_without_a_model(place: Workplace) -> None:
    data = {"train": "train.csv", "test": "test.csv", "text": "txt"}
    found = place.problems(validate_recipe, model="nothing", data=data)
    assert [each.what for each in found] == [
        "the checkpoint does not exist",
        "the text column 'txt' is missing",
    ]


def test_a_config_that_cannot_be_read_is_reported_once(place: Workplace) -> None:
    (place.checkpoint / "config.json").write_text("{")
    assert "config" in place.problem(validate_recipe).what


def test_a_config_without_class_names_is_reported(place: Workplace) -> None:
    place.write_config(id2label={})
    assert place.problem(validate_recipe).what == "the config names no classes"


def test_a_checkpoint_without_head_is_one_problem(place: Workplace) -> None:
    place.write_config(architectures=["BertModel"], id2label={})
    assert "no head for this task" in place.problem(validate_recipe).what


def test_a_checkpoint_of_another_task_names_the_recipe_for_it(place: Workplace) -> None:
    place.write_config(architectures=["BertLMHeadModel"])
    other = {"task": "text-classification"}
    problem = place.problem(validate_recipe, **other)  # its data is not looked at
    assert "is for text-generation, but the recipe has another task" in problem.what
    assert (problem.where, problem.given) == ("task", "text-classification")
    assert problem.fix == (
        "use the recipe generation or int8, or set task: text-generation in one of your own"
    )
    place.write_config(architectures=["BertForQuestionAnswering"])
    fix = place.problem(validate_recipe, **other).fix
    assert fix == "use the recipe int8, or set task: question-answering in one of your own"


def test_a_recipe_that_does_not_suit_the_network_is_not_named(place: Workplace) -> None:
    """`cnn` is for the same task, but drops blocks of convolutions."""
    vision = {"model_type": "vit", "image_size": 32, "patch_size": 8, "num_channels": 3}
    place.write_config(architectures=["ViTForImageClassification"], **vision)
    problem = place.problem(validate_recipe, task="text-classification")
    assert problem.fix == (
        "use the recipe image or int8, or set task: image-classification in one of your own"
    )


def test_timed_texts_are_no_longer_than_the_model_takes(place: Workplace) -> None:
    place.write_config(max_position_embeddings=64)
    assert place.recipe().benchmark.sequence_length == 64
    dumped = {**place.recipe().model_dump(mode="json"), "benchmark": {"rounds": 7}}
    assert validate_document(dumped, Path("r"), Path()).benchmark.sequence_length == 64
    cut = {"train": "train.csv", "test": "test.csv", "max_length": 16}
    assert place.recipe(data=cut).benchmark.sequence_length == 16
    given = {"sequence_length": 100}
    assert place.recipe(benchmark=given).benchmark.sequence_length == 100
    assert "longer than the model takes" in place.problem(benchmark=given).what
    place.write_config(max_position_embeddings=512)
    assert place.recipe().benchmark.sequence_length == 128


def test_a_valid_recipe_is_planned(place: Workplace) -> None:
    plan = validate_recipe(place.recipe())
    assert plan == make_plan(place.recipe())


# Speed


def test_validation_imports_nothing_heavy(place: Workplace) -> None:
    place.recipe(
        passes=[{"pass": "prune", "ratio": 0.5}, {"pass": "distill"}, "export", "quantize"],
        targets=["onnxruntime", "openvino", "pytorch", "tensorrt", "tensorrt_rtx"],
    )
    script = """
        import sys
        from compressor.planning import validate_recipe
        from compressor.recipe import load_recipe
        plan = validate_recipe(load_recipe(sys.argv[1]))
        assert len(plan.chains["compressed"]) == 4
        heavy = ["torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "datasets"]
        heavy += ["pandas", "sklearn", "matplotlib", "plotly", "tensorrt", "tensorrt_rtx"]
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(place.folder / "recipe.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"


def test_a_missing_tokenizer_is_reported(place: Workplace) -> None:
    (place.checkpoint / "tokenizer.json").unlink()
    with pytest.raises(RecipeError, match="the checkpoint has no tokenizer"):
        make_plan(place.recipe())


def test_a_limit_of_nothing_is_printed_and_what_was_not_set_is_not(home, compressor):
    found = compressor("plan", home / "recipe.yaml", "--set", "budget.max_accuracy_drop=0")
    assert found.code == 0, found.err
    [line] = [each for each in found.out.splitlines() if each.startswith("budget: ")]
    assert "max_accuracy_drop 0.0" in line
    assert "{}" not in line
