"""The recipe as a value, and its JSON Schema: well formed, complete, and one with the loader."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from compressor.errors import RecipeError
from compressor.passes import available_passes
from compressor.recipe import Budget, Recipe, builtin_recipes, load_recipe, recipe_json_schema
from compressor.recipe.schema import component_entry
from targets.registry import available

SCHEMA = recipe_json_schema()
COMPONENTS = [
    *(("pass", name, cls) for name, cls in available_passes().items()),
    *(("target", name, cls) for name, cls in available().items()),
]
COMPONENT_NAMES = [f"{key}_{name}" for key, name, _ in COMPONENTS]
MINIMAL: dict[str, Any] = {
    "model": "m",
    "data": {"train": "a.csv", "test": "b.csv"},
    "targets": ["onnxruntime"],
}

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}
KEYWORDS_WITHOUT_EFFECT = {"title", "description", "default", "format", "$schema", "$defs"}


def errors(value: Any, schema: dict[str, Any]) -> Iterator[str]:
    """Validate against the part of JSON Schema that recipes use; an unknown keyword is a bug."""
    for keyword, wanted in schema.items():
        if keyword in KEYWORDS_WITHOUT_EFFECT:
            continue
        check = CHECKS[keyword]
        yield from check(value, wanted, schema)


def is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    return isinstance(value, TYPES[name])


def one_of(value: Any, options: list[dict[str, Any]], schema: dict[str, Any]) -> Iterator[str]:
    fitting = sum(not any(errors(value, option)) for option in options)
    if fitting != 1:
        yield f"{value!r} fits {fitting} of the options"


def any_of(value: Any, options: list[dict[str, Any]], schema: dict[str, Any]) -> Iterator[str]:
    if all(any(errors(value, option)) for option in options):
        yield f"{value!r} fits none of the options"


def properties(value: Any, wanted: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    for name, each in wanted.items():
        if isinstance(value, dict) and name in value:
            yield from errors(value[name], each)


def additional(value: Any, wanted: Any, schema: dict[str, Any]) -> Iterator[str]:
    for name in value if isinstance(value, dict) else ():
        if name in schema.get("properties", {}):
            continue
        if wanted is False:
            yield f"unknown key {name!r}"
        elif isinstance(wanted, dict):
            yield from errors(value[name], wanted)


def items(value: Any, wanted: Any, schema: dict[str, Any]) -> Iterator[str]:
    for each in value if isinstance(value, list) else ():
        if isinstance(wanted, dict):
            yield from errors(each, wanted)


def simple(fails: Any) -> Any:
    def check(value: Any, wanted: Any, schema: dict[str, Any]) -> Iterator[str]:
        try:
            failed = fails(value, wanted)
        except TypeError:  # a bound of a value of another type
            failed = False
        if failed:
            yield f"{value!r} against {wanted!r}"

    return check


CHECKS: dict[str, Any] = {
    "$ref": lambda value, ref, schema: errors(value, SCHEMA["$defs"][ref.removeprefix("#/$defs/")]),
    "type": simple(lambda value, name: not is_type(value, name)),
    "const": simple(lambda value, wanted: value != wanted),
    "enum": simple(lambda value, wanted: value not in wanted),
    "oneOf": one_of,
    "anyOf": any_of,
    "properties": properties,
    "additionalProperties": additional,
    "propertyNames": simple(
        lambda value, wanted: any(not re.search(wanted["pattern"], str(name)) for name in value)
    ),
    "required": simple(lambda value, names: any(name not in value for name in names)),
    "items": items,
    "prefixItems": simple(lambda value, wanted: False),
    "minItems": simple(lambda value, least: isinstance(value, list) and len(value) < least),
    "maxItems": simple(lambda value, most: isinstance(value, list) and len(value) > most),
    "minLength": simple(lambda value, least: isinstance(value, str) and len(value) < least),
    "minimum": simple(lambda value, least: value is not None and value < least),
    "maximum": simple(lambda value, most: value is not None and value > most),
    "exclusiveMinimum": simple(lambda value, least: value is not None and value <= least),
    "exclusiveMaximum": simple(lambda value, most: value is not None and value >= most),
}


def schema_accepts(document: dict[str, Any]) -> bool:
    return not any(errors(document, SCHEMA))


def loader_accepts(document: dict[str, Any], folder: Path) -> bool:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    try:
        load_recipe(path)
    except RecipeError:
        return False
    return True


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for each in schema.values():
            yield from nodes(each)
    elif isinstance(schema, list):
        for each in schema:
            yield from nodes(each)


# The schema


def test_the_schema_is_json_and_names_its_dialect() -> None:
    text = json.dumps(SCHEMA, allow_nan=False)
    assert json.loads(text) == SCHEMA
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "Recipe"
    assert SCHEMA["type"] == "object"
    assert SCHEMA["required"] == ["model", "data", "targets"]
    assert SCHEMA["additionalProperties"] is False


def test_every_reference_leads_somewhere() -> None:
    references = {node["$ref"] for node in nodes(SCHEMA) if isinstance(node.get("$ref"), str)}
    assert references
    known = {f"#/$defs/{name}" for name in SCHEMA["$defs"]}
    assert references <= known


def test_it_has_the_settings_of_a_recipe_with_their_descriptions() -> None:
    assert set(SCHEMA["properties"]) == set(Recipe.model_fields)
    for name, field in Recipe.model_fields.items():
        assert field.description, name
        shown = SCHEMA["properties"][name]
        if "description" not in shown:  # pydantic leaves out what the section says of itself
            shown = SCHEMA["$defs"][shown["$ref"].removeprefix("#/$defs/")]
        assert shown["description"] == field.description


@pytest.mark.parametrize(("key", "name", "cls"), COMPONENTS, ids=COMPONENT_NAMES)
def test_every_component_is_complete(key: str, name: str, cls: Any) -> None:
    schema = SCHEMA["$defs"][f"{key}_{name}"]
    assert schema["properties"][key] == {"const": name}
    assert set(schema["properties"]) == {key, *cls.model_fields}
    assert schema["required"][0] == key
    assert schema["additionalProperties"] is False
    for field, settings in cls.model_fields.items():
        assert settings.description, f"{name}.{field} has no description"
        assert schema["properties"][field]["description"] == settings.description


@pytest.mark.parametrize("name", SCHEMA["$defs"])
def test_every_section_refuses_unknown_keys(name: str) -> None:
    assert SCHEMA["$defs"][name]["additionalProperties"] is False


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes_fit_the_schema_but_for_what_the_command_line_gives(name: str) -> None:
    document = yaml.safe_load(builtin_recipes()[name].read_text(encoding="utf-8"))
    document.setdefault("model", "m")
    document.setdefault("data", {})
    for split in ("train", "test"):
        document["data"].setdefault(split, f"{split}.csv")
    assert list(errors(document, SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "accepted"),
    [
        ({}, True),
        ({"name": "x", "seed": 3, "output": "o", "task": "text-classification"}, True),
        ({"passes": ["export", {"pass": "export", "opset": 20}]}, True),
        ({"passes": [{"pass": "quantize", "method": "dynamic"}, "quantize"]}, True),
        ({"passes": [{"pass": "prune", "ratio": 0.5, "recovery": {"epochs": 1}}]}, True),
        ({"variants": {"a": None, "b": [], "c": ["export"], "8bit": []}}, True),
        ({"targets": ["openvino", {"target": "openvino", "device": "GPU"}]}, True),
        ({"budget": {"max_accuracy_drop": -1, "min_speedup": 0.1, "require": "any"}}, True),
        ({"benchmark": {"batch_sizes": [1], "rounds": 1}}, True),
        ({"data": {"train": "a", "test": "b", "validation": None, "max_length": 2}}, True),
        ({"model": None}, False),
        ({"data": {"train": "a"}}, False),
        ({"data": {"train": "a", "test": "b", "max_length": 1}}, False),
        ({"unknown": 1}, False),
        ({"seed": -1}, False),
        ({"seed": 2**31}, False),
        ({"seed": "x"}, False),
        ({"name": ""}, False),
        ({"task": "fill-mask"}, False),
        ({"targets": []}, False),
        ({"targets": None}, False),
        ({"targets": ["none"]}, False),
        ({"targets": [{"target": "openvino", "devise": "GPU"}]}, False),
        ({"passes": ["none"]}, False),
        ({"passes": "export"}, False),
        ({"passes": [{"pass": "export", "opset": 3}]}, False),
        ({"passes": [{"pass": "export", "method": "static"}]}, False),
        ({"passes": [{"opset": 20}]}, False),
        ({"passes": [{"pass": "prune", "ratio": 0.5, "recovery": {"epoch": 1}}]}, False),
        ({"variants": {"a": ["none"]}}, False),
        ({"variants": {"a": 3}}, False),
        ({"variants": []}, False),
        ({"variants": {"a/b": []}}, False),
        ({"variants": {"original": []}}, False),
        ({"budget": {"min_speedup": 0}}, False),
        ({"budget": {"require": "all"}}, False),
        ({"budget": {"max_drop": 1}}, False),
        ({"benchmark": {"batch_sizes": []}}, False),
        ({"benchmark": {"rounds": 0}}, False),
    ],
)
def test_schema_and_loader_agree(change: dict[str, Any], accepted: bool, tmp_path: Path) -> None:
    document = MINIMAL | change
    assert schema_accepts(document) is accepted
    assert loader_accepts(document, tmp_path) is accepted


# The values


def test_the_chain_of_a_variant_begins_with_the_shared_passes() -> None:
    known = available_passes()
    export, quantize = known["export"](), known["quantize"]()
    fields: dict[str, Any] = {
        "name": "r",
        "model": "m",
        "task": "text-classification",
        "data": {"train": "a", "test": "b"},
        "targets": (available()["onnxruntime"](),),
    }
    plain = Recipe(passes=(export,), **fields)
    assert plain.chains == {"compressed": (export,)}
    branched = Recipe(passes=(export,), variants={"a": (), "b": (quantize,)}, **fields)
    assert branched.chains == {"a": (export,), "b": (export, quantize)}


def test_a_recipe_is_frozen() -> None:
    budget = Budget()
    with pytest.raises(ValidationError, match="frozen"):
        budget.min_speedup = 3  # type: ignore[misc]


@pytest.mark.parametrize("limit", ["max_accuracy_drop", "min_speedup", "max_latency_ms"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_limit_is_a_finite_number(limit: str, value: float) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate({limit: value})


def test_an_entry_names_its_component_first() -> None:
    export = available_passes()["export"]()
    entry = component_entry(export, "pass")
    assert list(entry) == ["pass", *(each for each in type(export).model_fields if each != "cache")]
    assert next(iter(entry.values())) == "export"


@pytest.mark.parametrize(
    ("task", "length"),
    [("text-classification", 128), ("audio-classification", 16_000), ("image-classification", 0)],
)
def test_a_benchmark_has_the_usual_length_of_the_inputs(
    tmp_path: Path, task: str, length: int
) -> None:
    def found(**benchmark: int) -> int:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**MINIMAL, "task": task, "benchmark": benchmark}))
        return load_recipe(path).benchmark.sequence_length

    assert found() == found(rounds=3) == length
    if length:
        assert found(sequence_length=64) == 64
    else:
        with pytest.raises(RecipeError, match="has no effect with the task"):
            found(sequence_length=64)


def test_a_benchmark_is_not_longer_than_the_data(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for longest, length in ((32, 32), (512, 128)):
        data = {**MINIMAL["data"], "max_length": longest}
        path.write_text(yaml.safe_dump({**MINIMAL, "data": data}))
        assert load_recipe(path).benchmark.sequence_length == length
