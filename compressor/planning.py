"""Everything that can be known before the first expensive second: the plan of a run."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture
from compressor.checkpoint import check_checkpoint, check_weights, class_name, read_config
from compressor.data import Splits, read_splits
from compressor.errors import (
    CheckpointError,
    PassError,
    Problem,
    RecipeError,
    guess_first,
    missing_path,
)
from compressor.gate.budget import WRITING_LIMITS, Budget, Limits
from compressor.gate.budget_file import unknown_targets
from compressor.passes import Pass, available_passes
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.recipe.document import read_document
from compressor.recipe.load import builtin_recipes
from compressor.recipe.schema import Recipe
from compressor.storage import why_not_writable
from compressor.tasks import Task, get_task, infer_task, task_of_head
from targets.base import Precision, Target
from targets.discovery import announcer
from targets.environment import library_versions, usable_cpus
from targets.errors import ToolkitError
from targets.preprocessing import FIXED_SIZE

__all__ = ["Plan", "PlannedPass", "check_unknown_layers", "make_plan", "validate_recipe"]

_INSTALL_BUILD = "pip install 'compressor[build]'"


MAX_SHARED = 0.02
"""Share of the test texts that may stand in the training data; short texts repeat by chance."""


FOR_EVERY_MODEL = "int8"
"""The built-in recipe that suits every task and model."""


@dataclass(frozen=True)
class PlannedPass:
    """One pass and what the model is expected to look like after it."""

    step: Pass
    outcome: Architecture


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        original: The untouched model.
        chains: Variant -> its passes.
        baselines: Precision -> passes that bring the untouched model there, fp32 first.
        warnings: What will not work as a reader of the recipe may expect.
        splits: The data, where it was read to be checked.
    """

    original: Architecture
    chains: dict[str, tuple[PlannedPass, ...]]
    baselines: dict[Precision, tuple[Pass, ...]]
    warnings: tuple[str, ...]
    splits: Splits | None = field(default=None, compare=False, repr=False)


def make_plan(recipe: Recipe) -> Plan:
    """Plan a run; trains nothing and imports no torch.

    Raises:
        RecipeError: Carries every problem: order of the passes, settings that do not fit the model,
            missing files and libraries.
    """
    problems: list[ToolkitError] = []
    original = _read_architecture(recipe, problems)
    for name, path in recipe.data.files.items():
        if not os.path.exists(path):
            problems.append(_missing_file(f"data.{name}", path))
    chains = {}
    for variant, passes in recipe.chains.items():
        known = {(each.what, each.where) for each in problems}  # of the passes that variants share
        problems.extend(
            problem
            for problem in _chain_problems(recipe, variant, passes)
            if (problem.what, problem.where) not in known
        )
        if original is not None:
            chains[variant] = _plan_chain(recipe, variant, passes, original, problems)
    problems.extend(_output_problems(recipe))
    problems.extend(_target_problems(recipe))
    problems.extend(_library_problems(recipe))
    problems.extend(_device_problems(recipe))
    problems.extend(_budget_problems(recipe))
    if original is not None:
        problems.extend(_shape_problems(recipe, original))
    if problems or original is None:
        raise RecipeError(problems, where=f"recipe {recipe.name}")
    warnings = [*_warnings(recipe), *_of_unknown_layers(original)]
    return Plan(original, chains, _baselines(recipe), tuple(warnings))


def check_unknown_layers(recipe: Recipe, original: Architecture) -> str:
    """Check that no pass needs the layers of a network whose config names some of an unknown kind.

    That they are of an unknown kind shows when the network is loaded.

    Returns:
        What to warn of.

    Raises:
        RecipeError: Names every pass that does.
    """
    problems: list[ToolkitError] = []
    unknown = replace(original, layers=(), has_unknown_layers=True)
    for variant, passes in recipe.chains.items():
        _plan_chain(recipe, variant, passes, unknown, problems)
    if problems:
        raise RecipeError(problems, where=f"recipe {recipe.name}")
    return next(_of_unknown_layers(unknown))


def validate_recipe(recipe: Recipe) -> Plan:
    """Check everything checkable: the plan, and that the data fits the model; it is read here.

    Raises:
        RecipeError: Carries every problem.
    """
    problems: list[ToolkitError] = []
    plan = None
    try:
        plan = make_plan(recipe)
    except RecipeError as error:
        problems.extend(error.problems)
    is_of_task = not any(each.where == "task" for each in problems)  # its data is of another kind
    if is_of_task and all(map(os.path.exists, recipe.data.files.values())):
        refused = any(isinstance(each, CheckpointError) for each in problems)
        try:
            task = get_task(recipe.task)
            names = None if refused else task.label_names(recipe.model)
            splits = read_splits(
                recipe.data,
                label_names=names,
                kind=task.kind,
                labels=task.label_field,
                seed=recipe.seed,
            )
            if plan is not None:
                leaks = _leaks(splits, task.preprocessing_type.noun)
                plan = replace(plan, warnings=(*plan.warnings, *leaks), splits=splits)
        except ToolkitError as error:
            if str(error) not in {str(each) for each in problems}:
                problems.append(error)
    if problems or plan is None:
        raise RecipeError(problems, where=f"recipe {recipe.name}")
    return plan


def _read_architecture(recipe: Recipe, problems: list[ToolkitError]) -> Architecture | None:
    try:
        task = get_task(recipe.task)
        _check_kind(recipe, task)
        check_checkpoint(recipe.model, head=task.heads_in(recipe.model), kind=task.kind)
        task.check_network(recipe.model)
        check_weights(recipe.model)
        task.check_processor(recipe.model)
        return Architecture.read(recipe.model)
    except ToolkitError as error:
        problems.append(error)
        return None


def _check_kind(recipe: Recipe, task: Task) -> None:
    """Refuse a checkpoint of another task than that of the recipe."""
    found = infer_task(recipe.model)
    kind = get_task(found).kind
    # A bare encoder does not have another task, but no head as yet.
    head = task_of_head(recipe.model, labelled=task.label_field is not None)
    is_other = kind != task.kind or head not in (None, task.name)
    if _has_config(recipe) and is_other:
        raise Problem(
            f"the checkpoint is for {found}, but the recipe has another task",
            where="task",
            given=recipe.task,
            fix=f"use the recipe {_recipes_of(found, _architecture_of(recipe.model))}, "
            f"or set task: {found} in one of your own",
        )
    if head is None and task_of_head(recipe.model) not in (None, task.name):
        name = class_name(read_config(recipe.model / "config.json"))
        raise Problem(
            f"the checkpoint has no head for this task; without a head it is for {found}",
            where="task",
            given=f"{name} for {recipe.task}",
            fix=f"fine-tune first: compressor finetune; or set task: {found}",
        )


def _architecture_of(model: Path) -> Architecture | None:
    """That of a checkpoint; None where it cannot be read, which is told by itself."""
    with contextlib.suppress(ToolkitError):
        return Architecture.read(model)
    return None


def _recipes_of(task: str, architecture: Architecture | None) -> str:
    """The built-in recipes for a model of a task, that for every model the last."""
    documents = {name: read_document(path) for name, path in builtin_recipes().items()}
    suited = [
        name
        for name, each in documents.items()
        if each.get("task") == task and (architecture is None or _suits(each, architecture))
    ]
    return " or ".join((*suited, FOR_EVERY_MODEL))


def _suits(document: Mapping[str, Any], architecture: Architecture) -> bool:
    """Whether the passes of a recipe's file can be used on a model."""
    known = available_passes()
    names = (each if isinstance(each, str) else each["pass"] for each in document["passes"])
    return all(known[name].unsuited(architecture) is None for name in names)


def _has_config(recipe: Recipe) -> bool:
    return (recipe.model / "config.json").is_file()


def _missing_file(where: str, path: Path) -> Problem:
    return Problem(
        "the file does not exist",
        where=where,
        given=path,
        fix=missing_path(path, "correct the path"),
    )


def _location(recipe: Recipe, variant: str, index: int) -> str:
    if index < len(recipe.passes):
        return f"passes.{index}"
    return f"variants.{variant}.{index - len(recipe.passes)}"


def _chain_problems(
    recipe: Recipe, variant: str, passes: tuple[Pass, ...]
) -> Iterator[ToolkitError]:
    form = "torch"
    in_order = True
    for index, each in enumerate(passes):
        if each.consumes == form:
            form = each.produces
            continue
        in_order = False  # and the form stays: the pass is expected to move
        yield Problem(
            f"{each.name} needs a model in {each.consumes} form, "
            f"but the passes before it leave one in {form} form",
            where=_location(recipe, variant, index),
            given=" > ".join(step.name for step in passes),
            fix=_order_fix(each, form),
        )
    needing = [target.label for target in recipe.targets if target.form == "onnx"]
    if form != "onnx" and needing and in_order:
        yield Problem(
            f"the passes leave a torch model, but ONNX is needed by {', '.join(needing)}",
            where=f"variants.{variant}" if recipe.variants else "passes",
            given=" > ".join(step.name for step in passes) or "no passes",
            fix="end with '- pass: export' (and a quantize after it, where you want one)",
        )


def _order_fix(each: Pass, form: str) -> str:
    if form == "torch":
        return "put '- pass: export' before it"
    if each.produces == form:
        return f"remove it: the model is in {form} form already"
    return f"move {each.name} before the export"


def _plan_chain(
    recipe: Recipe,
    variant: str,
    passes: tuple[Pass, ...],
    original: Architecture,
    problems: list[ToolkitError],
) -> tuple[PlannedPass, ...]:
    architecture, planned = original, []
    for index, each in enumerate(passes):
        reason = each.unsuited(architecture)
        if reason is not None:
            problem = Problem(
                f"{each.name} cannot be used on this model: {reason}",
                where=_location(recipe, variant, index),
                given=architecture.describe(),
                fix=f"remove it, or use the built-in recipe {_recipes_of(recipe.task, original)}",
            )
            if not any(known.where == problem.where for known in problems):
                problems.append(problem)
            continue
        try:
            architecture = each.plan(architecture, width_multiple=recipe.width_multiple)
        except PassError as error:
            where = _location(recipe, variant, index)
            if not any(problem.where == where for problem in problems):
                problems.append(Problem(error.what, where=where, given=error.given, fix=error.fix))
        planned.append(PlannedPass(each, architecture))
    return tuple(planned)


def _output_problems(recipe: Recipe) -> Iterator[ToolkitError]:
    inputs = {
        recipe.model.resolve(),
        *(path.resolve().parent for path in recipe.data.files.values()),
    }
    if recipe.output.resolve() in inputs:
        yield Problem(
            "the output folder is that of the model or the data, which are never changed",
            where="output",
            given=recipe.output,
            fix="name another folder: --output FOLDER",
        )
    reason = why_not_writable(recipe.output)
    if reason is not None:
        yield Problem(
            "the output folder cannot be written",
            where="output",
            given=f"{recipe.output} ({reason})",
            fix="name another folder: --output FOLDER",
        )


def _target_problems(recipe: Recipe) -> Iterator[ToolkitError]:
    labels = [target.label for target in recipe.targets]
    for index, label in enumerate(labels):
        first = labels.index(label)
        if first < index:
            yield Problem(
                "a target is listed twice, so its rows could not be told apart",
                where=f"targets.{index}",
                given=f"{label}, as in targets.{first}",
                fix="remove one of them, or compare their settings in two runs",
            )


def _library_problems(recipe: Recipe) -> Iterator[ToolkitError]:
    needed: dict[str, dict[str, str | None]] = {}  # library -> pass -> who else brings the pass
    for passes in recipe.chains.values():
        for each in passes:
            for library in each.libraries:
                needed.setdefault(library, {})[each.name] = announcer(type(each))
    for library, users in needed.items():
        if not library_versions((library,)):
            yield Problem(
                f"the library {library} is not installed",
                where="passes",
                given=f"needed by {', '.join(users)}",
                fix=f"pip install {library}" if all(users.values()) else _INSTALL_BUILD,
            )


def _device_problems(recipe: Recipe) -> Iterator[ToolkitError]:
    if recipe.devices is None:
        return
    from compressor.devices.connection import require_ssh
    from compressor.devices.inventory import read_devices

    if not recipe.devices.is_file():
        yield _missing_file("devices", recipe.devices)
        return
    try:
        require_ssh()
        known = list(read_devices(recipe.devices))
    except ToolkitError as error:
        yield from getattr(error, "problems", (error,))
        return
    for name in recipe.budget.devices:
        if name not in known:
            yield Problem(
                "the budget has limits for a device that the devices file does not name",
                where=f"budget.devices.{name}",
                given=name,
                fix=guess_first(name, known, f"use {', '.join(known)}"),
            )


def _budget_problems(recipe: Recipe) -> Iterator[ToolkitError]:
    """Limits on what the run does not measure: they could never be met."""
    budget = recipe.budget
    labels = [target.label for target in recipe.targets]
    yield from unknown_targets(budget, labels, "recipe", "budget.")
    if budget.devices and recipe.devices is None:
        yield Problem(
            "the budget has limits for devices, but the recipe names no devices file",
            where="budget.devices",
            given=", ".join(budget.devices),
            fix="set devices: FILE, or remove the limits",
        )
    yield from _unwritten(recipe)
    if recipe.task is not None:
        yield from _uncompared(budget, get_task(recipe.task), recipe.model)
    sliced = [where for where, limits in _all_limits(budget) if limits.max_slice_drop is not None]
    if sliced and not recipe.data.slices:
        yield Problem(
            "there is a limit on slices, but the data is not sliced",
            where=f"{sliced[0]}.max_slice_drop",
            given="data.slices is empty",
            fix="name columns of the test file in data.slices",
        )


def _unwritten(recipe: Recipe) -> Iterator[ToolkitError]:
    """Limits on what a language model writes, where none is asked to."""
    limited = [
        f"{where}.{name}"
        for where, limits in _all_limits(recipe.budget)
        for name in sorted(limits.given & WRITING_LIMITS)
    ]
    exports = [each for passes in recipe.chains.values() for each in passes]
    keeps_state = any(getattr(each, "cache", False) for each in exports)
    if limited and not (keeps_state and recipe.benchmark.write_tokens is not None):
        yield Problem(
            "there is a limit on what is written, but no bundle will write",
            where=limited[0],
            given="cache: false in every export"
            if recipe.benchmark.write_tokens is not None
            else "benchmark.write_tokens: null",
            fix="set cache: true in the pass export of a language model, and "
            "benchmark.write_tokens to 2 or more",
        )


def _uncompared(budget: Budget, task: Task, model: Path) -> Iterator[ToolkitError]:
    """Limits on what the models of a task are not compared by."""
    metrics = task.metrics
    with contextlib.suppress(CheckpointError):  # that is told by itself
        metrics = task.metrics_with(task.label_names(model))
    for where, limits in _all_limits(budget):
        for name in sorted(limits.given & task.not_compared):
            yield Problem(
                "the budget limits something that models of this task do not have",
                where=f"{where}.{name}",
                given=f"task {task.name}",
                fix="remove the limit, or use max_accuracy_drop",
            )
        for name in limits.max_metric_drop:
            if name not in metrics:
                yield Problem(
                    "the budget limits a metric that is not computed for models of this task",
                    where=f"{where}.max_metric_drop.{name}",
                    given=f"task {task.name}",
                    fix=f"use {', '.join(metrics)}" if metrics else "remove the limit",
                )


def _all_limits(budget: Budget) -> Iterator[tuple[str, Limits]]:
    """Where limits stand, and they."""
    yield "budget", budget
    yield from ((f"budget.targets.{name}", each) for name, each in budget.targets.items())


def _shape_problems(recipe: Recipe, original: Architecture) -> Iterator[ToolkitError]:
    task = get_task(recipe.task)
    try:
        limit = task.read_length(recipe.model, max_length=recipe.data.max_length)
    except CheckpointError:  # that is told by itself
        return
    if limit != FIXED_SIZE and recipe.benchmark.sequence_length > limit:
        yield Problem(
            "the benchmark's sequence is longer than the model takes",
            where="benchmark.sequence_length",
            given=recipe.benchmark.sequence_length,
            fix=f"use at most {limit}: --set benchmark.sequence_length={limit}",
        )
    if task.preprocessing_type.reads_files():
        return
    longest = math.inf if original.has_open_positions else original.max_positions
    if recipe.data.max_length and recipe.data.max_length > longest:
        yield Problem(
            "data.max_length is above the model's own limit",
            where="data.max_length",
            given=recipe.data.max_length,
            fix=f"use at most {original.max_positions}: "
            f"--set data.max_length={original.max_positions}",
        )


def _baselines(recipe: Recipe) -> dict[Precision, tuple[Pass, ...]]:
    """How the untouched model gets to each precision that some target runs natively."""
    exports = [
        each for passes in recipe.chains.values() for each in passes if isinstance(each, Export)
    ]
    export = exports[0] if exports else Export()
    precisions = [
        precision for target in recipe.targets for precision in target.native_precisions()
    ]
    return {
        precision: (export,) if precision == "fp32" else (export, Quantize(method=precision))
        for precision in dict.fromkeys(["fp32", *precisions])
    }


def _warnings(recipe: Recipe) -> Iterator[str]:
    for target in recipe.targets:
        reason = target.cannot_lower()
        if reason is not None:
            yield f"{target.label}: no bundle can be built here: {reason}"
            continue
        reason = target.cannot_run()
        if reason is not None:
            yield f"{target.label}: a bundle is built, but not measured: {reason}"
        yield from _refusals(recipe, target)
    for variant, passes in recipe.chains.items():
        yield from _unlike_rounding(variant, passes)
    files = {name: path.resolve() for name, path in sorted(recipe.data.files.items())}
    for one, other in itertools.combinations(files, 2):
        if files[one] == files[other]:
            yield f"data.{one} and data.{other} are the same file: the accuracy will look too good"
    cpus = len(usable_cpus())
    if recipe.benchmark.threads > cpus:
        yield f"benchmark.threads is {recipe.benchmark.threads}, and there are {cpus} CPUs here"
    if recipe.budget.is_empty:
        yield "the budget is empty: every bundle that can be built passes"


def _unlike_rounding(variant: str, passes: Sequence[Pass]) -> Iterator[str]:
    """Where a network learns to be rounded in another way than it is."""
    learned = [getattr(each, "quantization_aware", None) for each in passes]
    aware = next((each for each in reversed(learned) if each is not None), None)
    for each in passes:
        rounds = each.static_rounding
        if aware is None or rounds is None:
            continue
        unlike = [name for name, value in rounds.items() if value != getattr(aware, name)]
        if unlike:
            told = ", ".join(
                f"{name} {getattr(aware, name)}, not {rounds[name]}" for name in unlike
            )
            yield (
                f"{variant}: the training with quantization_aware rounds in another way than "
                f"quantize: {told}"
            )


def _of_unknown_layers(architecture: Architecture) -> Iterator[str]:
    if architecture.has_unknown_layers:
        yield (
            f"the layers of this network ({architecture.family}) are of an unknown kind: "
            "they are exported and quantized, but none is pruned or dropped"
        )


def _leaks(splits: Splits, noun: str) -> Iterator[str]:
    known = {*splits.train.inputs, *splits.validation.inputs}
    shared = sum(each in known for each in splits.test.inputs)
    if shared > MAX_SHARED * len(splits.test):
        yield (
            f"{shared} of {len(splits.test)} test {noun}s are also in the training or "
            "validation data: the accuracy will look too good"
        )


def _refusals(recipe: Recipe, target: Target) -> Iterator[str]:
    """The variants that a target will not take."""
    for variant, passes in recipe.chains.items():
        precisions = [each.precision for each in passes if each.precision is not None]
        reason = target.refuses.get(precisions[-1]) if precisions else None
        if reason is not None and target.form == "onnx":
            yield f"{target.label} refuses the variant {variant} ({precisions[-1]}): {reason}"
