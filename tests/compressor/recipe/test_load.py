"""Recipes: every problem at once, overrides, paths, and YAML that means harm."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.errors import Problem, RecipeError
from compressor.passes import available_passes
from compressor.recipe import Recipe, builtin_recipes, load_recipe
from targets.registry import available

MINIMAL = """
model: checkpoint
data: {train: train.csv, test: test.csv}
targets: [onnxruntime]
"""

Load = Callable[..., Recipe]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a recipe and load it."""

    def write_and_load(text: str, **options: Any) -> Recipe:
        path = tmp_path / "my_recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, **options)

    return write_and_load


def problems(load: Load, text: str, **options: Any) -> dict[str | None, Problem]:
    """Where -> problem."""
    with pytest.raises(RecipeError) as caught:
        load(text, **options)
    assert caught.value.exit_code == 3
    found = {problem.where: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems)
    return found  # type: ignore[return-value]


def only_problem(load: Load, text: str, **options: Any) -> Problem:
    (problem,) = problems(load, text, **options).values()
    return problem


# What is read


def test_defaults_are_filled_in(load: Load, tmp_path: Path) -> None:
    recipe = load(MINIMAL)
    assert recipe.name == "my_recipe"
    assert recipe.model == tmp_path / "checkpoint"
    assert recipe.passes == ()
    assert [target.name for target in recipe.targets] == ["onnxruntime"]
    assert recipe.output == tmp_path / "compressed"
    assert recipe.chains == {"compressed": ()}


def test_a_name_alone_is_a_pass_with_its_defaults(load: Load) -> None:
    short = load(MINIMAL + "passes: [export, quantize]")
    long = load(MINIMAL + "passes: [{pass: export}, {pass: quantize}]")
    assert short.passes == long.passes
    assert [each.name for each in short.passes] == ["export", "quantize"]


def test_limits_of_all_targets_hold_on_one_that_has_its_own(load: Load) -> None:
    text = "budget: {max_metric_drop: {macro_f1: 1.5}, targets: {openvino: {max_latency_ms: 3}}}"
    limits = load(MINIMAL + text).budget.on("openvino")
    assert (limits.max_metric_drop, limits.max_latency_ms) == ({"macro_f1": 1.5}, 3)


def test_a_mapping_may_merge_one_that_merges_another(load: Load) -> None:
    text = """
budget:
  targets:
    onnxruntime: &a {max_latency_ms: 5, max_size_mb: 20}
    openvino: &b {<<: *a, max_latency_ms: 3}
  <<: *b
"""
    budget = load(MINIMAL + text).budget
    assert (budget.max_latency_ms, budget.max_size_mb) == (3, 20)
    assert budget.targets["openvino"].max_latency_ms == 3


def test_variants_go_on_from_the_shared_passes(load: Load) -> None:
    recipe = load(
        MINIMAL
        + """
passes: [export]
variants:
  fp32:
  "int8": [{pass: quantize, method: dynamic}]
  8bit: []
"""
    )
    names = {name: [each.name for each in chain] for name, chain in recipe.chains.items()}
    assert names == {"fp32": ["export"], "int8": ["export", "quantize"], "8bit": ["export"]}


def test_yaml_anchors_and_merges_are_read(load: Load) -> None:
    recipe = load(
        MINIMAL
        + """
variants:
  a: [export, &int8 {pass: quantize, method: dynamic}]
  b: [export, {<<: *int8, weight_bits: 7}]
"""
    )
    a, b = (chain[1].settings() for chain in recipe.chains.values())
    assert (a["method"], a["weight_bits"]) == ("dynamic", 8)
    assert (b["method"], b["weight_bits"]) == ("dynamic", 7)


def test_paths_are_relative_to_the_recipe(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir("/")
    recipe = load(
        "model: ~/model\noutput: /abs\ntargets: [onnxruntime]\n"
        "data: {train: ../train.csv, test: sub/test.csv}"
    )
    assert recipe.model == Path("/home/me/model")
    assert recipe.output == Path("/abs")
    assert recipe.data.train == tmp_path.parent / "train.csv"
    assert recipe.data.test == tmp_path / "sub/test.csv"
    assert recipe.data.validation is None


# What is refused, all at once


def test_all_problems_are_reported_at_once_with_path_value_and_nearest_name(load: Load) -> None:
    found = problems(
        load,
        """
modle: checkpoint
model: checkpoint
data: {train: a.csv, test: b.csv, lable: x, max_length: 1}
targets: [onnxruntim, {target: openvino, devise: GPU}]
passes:
  - exprt
  - {pass: quantize, methd: static}
  - {pass: quantize, method: dinamic, weight_bits: 9}
  - 3
  - {method: static}
variants:
  a: [{pass: prun}]
budget: {min_speedup: -1, require: al}
benchmark: {batch_sizes: [0], round: 3}
seed: x
""",
    )
    assert set(found) == {
        "modle",
        "data.lable",
        "data.max_length",
        "targets.0.target",
        "targets.1.devise",
        "passes.0.pass",
        "passes.1.methd",
        "passes.2.method",
        "passes.2.weight_bits",
        "passes.3",
        "passes.4",
        "variants.a.0.pass",
        "budget.min_speedup",
        "budget.require",
        "benchmark.batch_sizes",
        "benchmark.round",
        "seed",
    }
    nearest = {
        "modle": "model",
        "data.lable": "label",
        "targets.0.target": "onnxruntime",
        "targets.1.devise": "device",
        "passes.0.pass": "export",
        "passes.1.methd": "method",
        "variants.a.0.pass": "prune",
        "benchmark.round": "rounds",
    }
    for where, name in nearest.items():
        assert str(found[where].fix).startswith(f"did you mean {name!r}? known: "), where
    assert found["passes.2.method"].given == "'dinamic'"
    assert found["budget.min_speedup"].given == "-1"
    assert found["seed"].what.startswith("input should be a valid integer")
    assert found["passes.4"].given == "{'method': 'static'}"
    assert found["passes.4"].fix == "write '- pass: NAME', with its settings below it"


def test_the_message_holds_every_problem(load: Load, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load("model: a\ntargets: [gpu]\nsead: 3")
    assert [line.strip() for line in str(caught.value).splitlines() if line] == [
        "the recipe has 3 problems",
        f"where: {tmp_path / 'my_recipe.yaml'}",
        "1. a required setting is missing",
        "where: data",
        "fix:   add data",
        "2. there is no setting 'sead'",
        "where: sead",
        "given: 'sead'",
        f"fix:   did you mean 'seed'? known: {', '.join(Recipe.model_fields)}",
        "3. there is no target 'gpu'",
        "where: targets.0.target",
        "given: 'gpu'",
        f"fix:   known: {', '.join(available())}",
    ]


def test_names_are_matched_without_regard_to_case(load: Load) -> None:
    problem = only_problem(load, MINIMAL.replace("onnxruntime", "OpenVINO"))
    assert str(problem.fix).startswith("did you mean 'openvino'?")


def test_nested_settings_of_a_pass_are_checked(load: Load) -> None:
    found = problems(
        load,
        MINIMAL
        + "passes: [{pass: prune, ratio: 0.5, recovery: {tempreature: 2, epochs: -1}}, export]",
    )
    assert set(found) == {"passes.0.recovery.tempreature", "passes.0.recovery.epochs"}
    fix = str(found["passes.0.recovery.tempreature"].fix)
    assert fix.startswith("did you mean 'temperature'?")


@pytest.mark.parametrize(
    ("passes", "fix"),
    [
        ("{pass: distill, epochs: -1}", "use at least 1"),
        ("{pass: distill, learning_rate: 0}", "use more than 0"),
        ("{pass: distill, learning_rate: 2}", "use at most 1"),
        ("{pass: distill, dropout: 1}", "use less than 1"),
        ("{pass: distill, epochs: many}", "write a whole number"),
        ("{pass: distill, learning_rate: fast}", "write a number"),
        ("{pass: distill, schedule: linar}", "did you mean 'linear'?"),
        ("{pass: distill, schedule: 7}", "use one of these"),
        ("{pass: distill, train_word_embeddings: perhaps}", "write true or false"),
    ],
)
def test_a_value_that_a_setting_does_not_take_says_what_it_takes(
    load: Load, passes: str, fix: str
) -> None:
    assert only_problem(load, MINIMAL + f"passes: [{passes}, export]").fix == fix


def test_settings_without_effect_are_refused(load: Load) -> None:
    problem = only_problem(
        load, MINIMAL + "passes: [export, {pass: quantize, method: dynamic, percentile: 99}]"
    )
    assert problem.where == "passes.1"
    assert "percentile has no effect with method dynamic" in problem.what


@pytest.mark.parametrize("targets", ["[]", "", "onnxruntime", "{target: onnxruntime}"])
def test_targets_are_a_list_with_something_in_it(load: Load, targets: str) -> None:
    problem = only_problem(load, MINIMAL.replace("[onnxruntime]", targets))
    assert problem.where == "targets"


@pytest.mark.parametrize("key", ["passes", "variants"])
@pytest.mark.parametrize("value", ["3", "export", "", "[[export]]"])
def test_passes_are_lists(load: Load, key: str, value: str) -> None:
    problem = only_problem(load, MINIMAL + f"{key}: {value}")
    assert str(problem.where).startswith(key)


@pytest.mark.parametrize("value", ["0", "false", "''", "{}"])
def test_only_a_blank_tail_of_a_variant_means_no_passes(load: Load, value: str) -> None:
    problem = only_problem(load, MINIMAL + f"variants: {{a: {value}}}")
    assert problem.where == "variants.a"
    assert problem.what == "variants.a must be a list"


@pytest.mark.parametrize(
    "name", ["no", "null", "1.5", "2024-01-01", "a/b", "'../a'", "''", "original", "-a", "a b"]
)
def test_variant_names_are_words_fit_for_a_folder(load: Load, name: str) -> None:
    problem = only_problem(load, MINIMAL + f"variants: {{? {name} : [export]}}")
    assert problem.where == "variants"
    assert "put words such as 'no' in quotes" in str(problem.fix)


def test_a_recipe_that_is_not_there_names_the_built_in_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    (problem,) = caught.value.problems
    assert problem.what == "the file does not exist"
    assert all(name in str(problem.fix) for name in builtin_recipes())
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path)
    assert caught.value.problems[0].what == "this is not a file"


def test_a_recipe_file_that_is_misspelt_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "release.yaml").write_text(MINIMAL)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "relase.yaml")
    (problem,) = caught.value.problems
    assert problem.given == str(tmp_path / "relase.yaml")
    assert str(problem.fix).startswith("did you mean 'release.yaml'? correct the path; ")


def test_an_unknown_task_names_the_nearest_and_all(load: Load) -> None:
    problem = only_problem(load, MINIMAL + "task: text-clasification")
    assert problem.what == "there is no task 'text-clasification'"
    assert (problem.where, problem.given) == ("task", "'text-clasification'")
    assert str(problem.fix).startswith("did you mean 'text-classification'? known: ")


# YAML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: a\nmodel: b", "the key 'model' appears twice"),
        ("model: a\ndata: {train: a, train: b}", "the key 'train' appears twice"),
        (
            "a: &a {k: 1}\nb:\n  c: &b {<<: *a, k: 2, k: 3}\n  <<: *b",
            "the key 'k' appears twice",
        ),
        ("a: [", "line 1"),
        ("a: b: c", "line 1"),
        ("? [a]\n: b", "unhashable key"),
        ("a: !!python/object/apply:os.system ['touch /tmp/x']", "could not determine"),
        ("a: !!python/name:os.system", "could not determine"),
        ("a: !include b.yaml", "could not determine"),
        ("a: *b", "undefined alias"),
        ("a: &b [*b]", ""),
        ("[" * 1200, ""),
        ("a: \x07", "special characters"),
    ],
)
def test_bad_yaml_is_one_clear_problem(load: Load, tmp_path: Path, text: str, words: str) -> None:
    problem = only_problem(load, text)
    assert problem.what == "the file is not valid YAML"
    assert words in str(problem.given)


def test_yaml_errors_name_the_file_and_the_line(load: Load, tmp_path: Path) -> None:
    problem = only_problem(load, "model: a\n\nmodel: b")
    assert f'in "{tmp_path / "my_recipe.yaml"}", line 3' in str(problem.given)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(RecipeError, match="1 problem") as caught:
        load_recipe(path)
    assert "utf-8" in str(caught.value)


@pytest.mark.parametrize("key", ["passes", "name", "variants", "data", "unknown"])
def test_aliases_of_aliases_do_not_fill_the_memory(load: Load, key: str) -> None:
    levels = "abcdefghij"
    lines = [f"{levels[0]}: &{levels[0]} [x, x, x, x, x, x, x, x, x, x]"]
    for before, level in itertools.pairwise(levels):
        lines.append(f"{level}: &{level} [{', '.join([f'*{before}'] * 10)}]")
    problem = only_problem(load, "\n".join([*lines, f"{key}: *{levels[-1]}"]))
    assert "more than 20000 values" in str(problem.given)


@pytest.mark.parametrize("text", ["", "- model", "model", "3"])
def test_a_recipe_is_a_mapping(load: Load, text: str) -> None:
    assert only_problem(load, text).what == "a recipe must be a mapping of settings"


def test_long_values_are_cut_in_messages(load: Load) -> None:
    found = problems(load, MINIMAL + f"seed: {'x' * 5000}\npasses: {{a: {list(range(900))}}}")
    assert len(str(found["seed"].given)) < 300
    assert len(str(found["passes"].given)) < 300


# Overrides and values of the command line

CHAIN = MINIMAL + "passes: [export, {pass: quantize, method: dynamic}]\n"


def test_overrides_set_values_by_path(load: Load) -> None:
    recipe = load(
        CHAIN,
        overrides=[
            "seed=7",
            "passes.1.weight_bits=7",
            "budget.max_accuracy_drop=1.5",
            "data.text=sentence=x",
            "benchmark.batch_sizes=[1, 4]",
            "name= a name ",
        ],
    )
    assert recipe.seed == 7
    assert recipe.passes[1].settings()["weight_bits"] == 7
    assert recipe.budget.max_accuracy_drop == 1.5
    assert recipe.data.text == "sentence=x"
    assert recipe.benchmark.batch_sizes == (1, 4)
    assert recipe.name == "a name"


def test_overrides_reach_into_names_that_stand_alone(load: Load) -> None:
    recipe = load(
        MINIMAL + "passes: [export]\nvariants: {a: [quantize]}",
        overrides=[
            "passes.0.opset=20",
            "variants.a.0.method=dynamic",
            "targets.0={target: openvino}",
        ],
    )
    assert recipe.passes[0].settings()["opset"] == 20
    assert recipe.variants["a"][0].settings()["method"] == "dynamic"
    assert recipe.targets[0].name == "openvino"
    recipe = load(MINIMAL.replace("onnxruntime", "openvino"), overrides=["targets.0.device=GPU"])
    assert recipe.targets[0].label == "openvino (GPU)"


def test_overrides_do_not_reach_through_aliases(load: Load) -> None:
    recipe = load(
        MINIMAL + "passes: [export]\nvariants: {a: &x [{pass: quantize}], b: *x}",
        overrides=["variants.a.0.method=dynamic"],
    )
    methods = [tail[0].settings()["method"] for tail in recipe.variants.values()]
    assert methods == ["dynamic", "static"]


def test_overrides_of_empty_sections_fill_them(load: Load) -> None:
    recipe = load(MINIMAL + "budget:\n", overrides=["budget.min_speedup=2"])
    assert recipe.budget.min_speedup == 2


@pytest.mark.parametrize(
    ("override", "where", "what", "detail"),
    [
        ("seed", None, "has no value", "write it as --set"),
        ("passes.2.opset=1", "passes.2", "not there", "use an index: 0 ('export'), 1 ('quantize')"),
        ("passes.2=export", "passes.2", "not there", "use an index: 0 ('export'), 1 ('quantize')"),
        (
            "passes.-1.opset=1",
            "passes.-1",
            "not there",
            "use an index: 0 ('export'), 1 ('quantize')",
        ),
        ("passes.².opset=1", "passes.²", "not there", "use an index: 0 ('export'), 1 ('quantize')"),
        (
            "passes.export.opset=1",
            "passes.export",
            "not there",
            "use an index: 0 ('export'), 1 ('quantize')",
        ),
        ("empty.0.opset=1", "empty.0", "not there", "the list is empty"),
        ("model.x.y=1", "model.x", "no parts", "the value there is 'checkpoint'"),
        ("model.x=1", "model.x", "no parts", "the value there is 'checkpoint'"),
        ("seed=[", None, "not valid YAML", "put it in quotes"),
        ("seed=" + "[" * 1200, None, "not valid YAML", "put it in quotes"),
    ],
)
def test_overrides_that_lead_nowhere(
    load: Load, override: str, where: str | None, what: str, detail: str
) -> None:
    problem = only_problem(load, CHAIN + "empty: []", overrides=[override])
    assert problem.where == where
    assert what in problem.what
    assert detail in str(problem.fix)


def test_all_bad_overrides_are_reported_at_once(load: Load) -> None:
    found = problems(load, CHAIN, overrides=["passes.7.x=1", "seed=1", "model.x=2"])
    assert set(found) == {"passes.7", "model.x"}


def test_of_several_overrides_the_one_that_holds_is_named(load: Load) -> None:
    problem = only_problem(load, CHAIN, overrides=["seed=1", "seed=abc"])
    assert problem.where == "seed, from --set seed=abc"
    assert only_problem(load, CHAIN + "seed: abc").where == "seed"


def test_a_misspelt_override_is_found_like_a_misspelt_setting(load: Load) -> None:
    problem = only_problem(load, CHAIN, overrides=["budget.max_acuracy_drop=1"])
    assert problem.where == ("budget.max_acuracy_drop, from --set budget.max_acuracy_drop=1")
    assert "did you mean 'max_accuracy_drop'?" in str(problem.fix)


def test_values_of_the_command_line_stand_in_for_the_file(load: Load) -> None:
    values = {"model": "/m", "data.train": "/a.csv", "data.test": "/b.csv", "output": "/o"}
    recipe = load("targets: [onnxruntime]\ndata:\n", values=values)
    assert recipe.model == Path("/m")
    assert recipe.data.train == Path("/a.csv")
    assert recipe.output == Path("/o")
    recipe = load(MINIMAL, values=values, overrides=["model=/other"])
    assert recipe.model == Path("/other")


def test_values_of_the_command_line_do_not_hide_a_broken_section(load: Load) -> None:
    problem = only_problem(load, "data: 3", values={"data.train": "/a.csv"})
    assert problem.where == "data.train"


# Round trip

FULL = """
model: checkpoint
data: {train: a.csv, test: b.csv, validation: c.csv, text: t, label: l, max_length: 64}
passes:
  - {pass: distill, epochs: 2}
  - {pass: prune, ratio: 0.5, steps: 2, recovery: {epochs: 1}}
  - export
variants:
  fp32:
  dynamic: [{pass: quantize, method: dynamic, weight_bits: 7, exclude: [a, b]}]
  minmax: [{pass: quantize, calibration: minmax}]
  fp16: [{pass: quantize, method: fp16}]
targets: [onnxruntime, {target: openvino, device: GPU}, pytorch]
budget: {max_accuracy_drop: 1, min_speedup: 3, require: any}
benchmark: {batch_sizes: [1, 4], rounds: 3}
seed: 5
output: out
"""


def test_a_recipe_survives_a_round_trip(load: Load) -> None:
    recipe = load(FULL)
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    again = load(text)
    assert again == recipe
    assert again.model_dump(mode="json") == recipe.model_dump(mode="json")


@pytest.mark.parametrize("name", available_passes())
def test_every_pass_survives_a_round_trip(load: Load, name: str) -> None:
    entry: dict[str, Any] = {"pass": name}
    needed = {
        "prune": {"ratio": 0.5},
        "drop_blocks": {"ratio": 0.5},
        "drop_layers": {"num_layers": 2},
        "merge_tokens": {"ratio": 0.5},
        "student": {"checkpoint": "other"},
    }
    entry |= needed.get(name, {})
    recipe = load(yaml.safe_dump({**yaml.safe_load(MINIMAL), "passes": [entry]}))
    again = load(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert again == recipe


@pytest.mark.parametrize("name", available())
def test_every_target_survives_a_round_trip(load: Load, name: str) -> None:
    recipe = load(MINIMAL.replace("onnxruntime", name))
    assert load(yaml.safe_dump(recipe.model_dump(mode="json"))) == recipe


# Built-in recipes


@pytest.mark.parametrize("name", builtin_recipes())
def test_every_built_in_recipe_loads(name: str, tmp_path: Path) -> None:
    values = {"model": "/m", "data.train": "/a.csv", "data.test": "/b.csv"}
    recipe = load_recipe(name, values=values)
    assert recipe.name == name
    assert recipe.chains
    text = yaml.safe_dump(recipe.model_dump(mode="json"))
    path = tmp_path / "again.yaml"
    path.write_text(text)
    assert load_recipe(path) == recipe


def test_a_built_in_recipe_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"model": "m", "data.train": "a.csv", "data.test": "b.csv"}
    for name in builtin_recipes():
        recipe = load_recipe(name, values=values)
        assert recipe.model == tmp_path / "m"
        assert recipe.output.is_relative_to(tmp_path)


def test_a_recipe_without_a_task_has_that_of_its_checkpoint(tmp_path: Path) -> None:
    """Wherever the model is named; a task that is named stands."""
    (tmp_path / "vit").mkdir()
    config = {"architectures": ["ViTForImageClassification"], "image_size": 32}
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL.replace("checkpoint", "vit"))
    assert load_recipe(path).task == "image-classification"
    values = {"model": str(tmp_path / "vit")}
    for name in ("fast", "int8"):
        assert load_recipe(name, values=values).task == "image-classification"
    named = load_recipe("int8", values=values, overrides=["task=semantic-segmentation"])
    assert named.task == "semantic-segmentation"
    assert load_recipe("int8", values={"model": "/nowhere"}).task == "text-classification"


def test_a_misspelt_built_in_recipe_names_the_nearest() -> None:
    for name in builtin_recipes():
        with pytest.raises(RecipeError) as caught:
            load_recipe(name[:-1] + "_")
        assert f"did you mean {name!r}?" in str(caught.value)


def test_built_in_recipes_begin_with_a_line_on_what_they_are_for() -> None:
    for path in builtin_recipes().values():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
