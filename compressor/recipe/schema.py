"""The recipe as a frozen value, and its JSON Schema for editors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
)

from compressor.data import DataSpec
from compressor.gate.budget import Budget
from compressor.passes import Pass, available_passes
from compressor.tasks import TaskName, get_task
from targets.base import Target
from targets.benchmark import BenchmarkSettings
from targets.discovery import Component
from targets.preprocessing import FIXED_SIZE
from targets.registry import available

__all__ = ["BundleSettings", "Recipe", "component_entry", "recipe_json_schema"]

ORIGINAL = "original"
"""Name of the untouched model among the variants."""

VARIANT_NAME = rf"^(?!{ORIGINAL}$)[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of the other names: each becomes part of folder names."""

_FILLED_IN = ("name", "task")
"""What a file may leave out, and a recipe always has."""

DEFAULT_VARIANT = "compressed"
"""Name of the one variant of a recipe that lists none."""


class BundleSettings(BaseModel):
    """What goes into the bundles beside the model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tune: bool = False
    """Whether to measure each target's runtime options on this machine and store the fastest in
    the bundle. Baselines are tuned as well."""
    evaluation_data: bool = True
    """Whether the test data goes along as the model reads it, so that the accuracy can be measured
    again on the device. Tokens can be turned back into text: leave out what must stay private."""


class Recipe(BaseModel):
    """One run: which model, which data, which passes, which targets, which budget."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True
    )

    name: str = Field(min_length=1)
    """For reports; the default is the name of the recipe file."""
    model: Path
    """The fine-tuned checkpoint: a Hugging Face folder with safetensors."""
    task: TaskName
    """What the model does; where a file leaves it out, what its checkpoint was made for."""
    data: DataSpec
    """Labelled data: for training, for choosing, and held out for the final figures."""
    passes: tuple[Pass, ...] = ()
    """Applied in this order; shared by all variants."""
    variants: dict[str, tuple[Pass, ...]] = Field(default_factory=dict)
    """Name -> passes that go on from the shared ones. All are built and measured on every target,
    and the fastest that meets the budget is chosen."""
    targets: tuple[Target, ...] = Field(min_length=1)
    """Where to lower to and measure."""
    budget: Budget = Budget()
    """What a bundle has to reach for the run to succeed."""
    benchmark: BenchmarkSettings = Field(default=BenchmarkSettings(), validate_default=True)
    """How latency is measured."""
    devices: Path | None = None
    """A devices file: every bundle is measured on each of its devices as well, over SSH."""
    bundle: BundleSettings = BundleSettings()
    """What goes into the bundles beside the model."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of every random choice."""
    output: Path = Path("compressed")
    """Folder for the report and the bundles."""

    @field_validator("benchmark")
    @classmethod
    def _fit_lengths(cls, settings: BenchmarkSettings, info: ValidationInfo) -> BenchmarkSettings:
        """Inputs that all have one size have no length; others have one that is usual, or the
        longest of the data."""
        task = info.data.get("task")
        if task is None:
            return settings
        kind = get_task(task).preprocessing_type
        is_given = "sequence_length" in settings.model_fields_set
        if kind.unit is not None and is_given:
            return settings
        if is_given and settings.sequence_length != FIXED_SIZE:
            raise ValueError(f"sequence_length has no effect with the task {task}")
        data = info.data.get("data")
        longest = data.max_length if data is not None else None
        length = min(kind.usual_length, longest or kind.usual_length)
        return settings.model_copy(update={"sequence_length": length})

    @property
    def chains(self) -> dict[str, tuple[Pass, ...]]:
        """Variant -> all of its passes, shared ones first."""
        if not self.variants:
            return {DEFAULT_VARIANT: self.passes}
        return {name: self.passes + tail for name, tail in self.variants.items()}

    @property
    def width_multiple(self) -> int:
        """What widths are rounded to: the kernels of every target like them, and groups of weights
        that share a scale are whole."""
        groups = {each.width_multiple for chain in self.chains.values() for each in chain}
        return math.lcm(*(target.width_multiple for target in self.targets), *groups)

    @field_serializer("passes")
    def _dump_passes(self, passes: tuple[Pass, ...]) -> list[dict[str, Any]]:
        return [component_entry(each, "pass") for each in passes]

    @field_serializer("variants")
    def _dump_variants(self, variants: dict[str, tuple[Pass, ...]]) -> dict[str, Any]:
        return {name: self._dump_passes(tail) for name, tail in variants.items()}

    @field_serializer("targets")
    def _dump_targets(self, targets: tuple[Target, ...]) -> list[dict[str, Any]]:
        return [component_entry(each, "target") for each in targets]


def component_entry(component: Component, key: str) -> dict[str, Any]:
    """A pass or target as it stands in a recipe: its name under ``key``, then its settings."""
    return {key: component.name, **component.settings()}


def recipe_json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, with every installed pass and target."""

    class _Document(Recipe):
        passes: Any = ()
        variants: Any = {}
        targets: Any

    schema = _Document.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    passes = _component_schemas("pass", available_passes(), definitions)
    targets = _component_schemas("target", available(), definitions)
    properties = schema["properties"]
    chain = {"type": "array", "items": {"oneOf": passes}}
    variants = {
        "type": "object",
        "propertyNames": {"pattern": VARIANT_NAME},
        "additionalProperties": {"anyOf": [chain, {"type": "null"}]},
    }
    for name, shape in (
        ("passes", chain),
        ("variants", variants),
        ("targets", {"type": "array", "minItems": 1, "items": {"oneOf": targets}}),
    ):
        description = Recipe.model_fields[name].description
        properties[name] = {"description": description, **shape}
    schema["required"] = [name for name in schema["required"] if name not in _FILLED_IN]
    schema["title"] = "Recipe"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _component_schemas(
    key: str, classes: dict[str, Any], definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    references: list[dict[str, Any]] = [{"enum": list(classes)}]  # the name alone: `- export`
    for name, cls in classes.items():
        schema = cls.model_json_schema()
        definitions.update(schema.pop("$defs", {}))
        schema["properties"] = {key: {"const": name}, **schema.get("properties", {})}
        schema["required"] = [key, *schema.get("required", [])]
        definitions[f"{key}_{name}"] = schema
        references.append({"$ref": f"#/$defs/{key}_{name}"})
    return references
