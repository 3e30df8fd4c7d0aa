"""One run of a recipe, from the checkpoint to the report."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from compressor import interruption
from compressor.device_latency import OnDevices, measure_on_devices
from compressor.errors import PassError
from compressor.gate.verdict import judge
from compressor.layer_errors import measure_layers, unlike
from compressor.lowering import Candidate, lower
from compressor.measuring import (
    SPLITS,
    Evaluators,
    Predictions,
    evaluate,
    evaluation_packs,
    measure_latency,
    measure_writing_speed,
    tuned,
    writers_among,
)
from compressor.passes import advice_for
from compressor.planning import validate_recipe
from compressor.preparation import Prepared, prepare, runnable_targets
from compressor.progress import Progress, Silent
from compressor.publishing import Publisher, remove_leftovers, set_aside
from compressor.recipe.schema import ORIGINAL, Recipe
from compressor.report.files import withdraw_report, write_report
from compressor.report.schema import LayerError, ModelFacts, Report, Row, Step
from compressor.report.wording import significant, worst_layer
from compressor.rows import Rows, accuracy
from compressor.store import RunStore, StoredStep
from compressor.tasks import get_task
from targets.base import Target
from targets.benchmark import CaseResult
from targets.bundle import Bundle
from targets.environment import Environment
from targets.errors import BundleError, InputError, MissingLibraryError, TargetError
from targets.interference import peak_memory_bytes
from targets.runtimes.pytorch import PyTorch
from targets.scoring import perplexity
from targets.tuning import offered
from targets.writing import Writing

if TYPE_CHECKING:
    from compressor.training.teacher import TeacherMemory

__all__ = ["run", "try_on_validation"]

BUNDLES = "bundles"


@dataclass(frozen=True)
class _Chain:
    """A variant and the steps that made it, the imported checkpoint first."""

    variant: str
    steps: tuple[StoredStep, ...]


@dataclass(frozen=True)
class _Measured:
    """Everything that a run made and measured, before it is judged."""

    baselines: list[_Chain]
    chains: list[_Chain]
    candidates: list[Candidate]
    packs: dict[str, StoredStep]
    predictions: dict[str, Predictions]
    rows: Rows
    environment: Environment | None


def run(
    recipe: Recipe,
    *,
    store: RunStore,
    progress: Progress | None = None,
    measure_again: bool = False,
    teacher_memory: TeacherMemory | None = None,
    may_fail: Collection[str] = (),
) -> Report:
    """Run a recipe; everything finished is kept in the store and found again.

    Args:
        recipe: What to do.
        store: Where finished steps are kept.
        progress: Is told what happens.
        measure_again: Take the latencies anew also where the store has them, such as after a noisy
            run.
        teacher_memory: What the untouched model said in a search before; the caller clears it.
        may_fail: Variants without which the run goes on, where their own passes fail.

    Returns:
        The report, also written to ``recipe.output`` with the bundles beside it.

    Raises:
        ToolkitError: The recipe does not hold, a pass failed, or the store cannot be written.
    """
    plan = validate_recipe(recipe)
    progress = progress or Silent()
    for warning in plan.warnings:
        progress.warn(warning)
    with store.run(recipe.name, recipe.output):
        prepared = prepare(recipe, plan, store=store, progress=progress)
        job = _Run(
            prepared,
            measure_again=measure_again,
            teacher_memory=teacher_memory,
            may_fail=may_fail,
        )
        return job.report()


def try_on_validation(
    recipe: Recipe,
    *,
    store: RunStore,
    progress: Progress,
    watch: Callable[[Prepared], Callable[[int, float], None]],
) -> list[Row]:
    """Run a recipe up to the choice of what to ship, on the targets that run here.

    The test data is not looked at, and nothing is written outside of the store. Nothing is tuned,
    and no device is asked.

    Args:
        recipe: What to do.
        store: Where finished steps are kept; `run` finds the trained models and the bundles there.
        progress: Is told what happens.
        watch: Gives, once the checkpoint was read, what is told each accuracy of each training;
            see `PassManager`.

    Returns:
        The rows of the report, with what is known from the validation data; those that would ship
        are marked.

    Raises:
        TrainingStoppedError: A training was stopped.
        ToolkitError: As `run`.
    """
    recipe = recipe.model_copy(
        update={
            "devices": None,
            "budget": recipe.budget.here,
            "bundle": recipe.bundle.model_copy(update={"tune": False}),
        }
    )
    targets = runnable_targets(recipe)
    plan = validate_recipe(recipe)
    with store.run(recipe.name, recipe.output):
        prepared = prepare(recipe, plan, store=store, progress=progress)
        trial = _Run(
            prepared,
            targets=targets,
            splits=("validation",),
            purpose="trial",
            on_evaluation=watch(prepared),
        )
        return trial.measure().rows.build()


class _Run:
    """The state of one run: what was made so far, in the order of its methods."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        measure_again: bool = False,
        targets: Sequence[Target] | None = None,
        splits: Sequence[str] = SPLITS,
        purpose: str = "report",
        on_evaluation: Callable[[int, float], None] = lambda epoch, accuracy: None,
        teacher_memory: TeacherMemory | None = None,
        may_fail: Collection[str] = (),
    ) -> None:
        self.may_fail = may_fail
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.plan = prepared.plan
        self.store = prepared.store
        self.progress = prepared.progress
        self.measure_again = measure_again
        self.targets = self.recipe.targets if targets is None else targets
        self.splits = splits  # on which the bundles predict
        self.purpose = purpose  # of the latencies
        self.on_evaluation = on_evaluation
        self.teacher_memory = teacher_memory
        self.started = time.monotonic()
        self.environment = Environment.here()
        self.task = get_task(self.recipe.task)
        self.notes: dict[str, str] = {}  # candidate key -> what its evaluation found

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        return self.task.label_names(self.recipe.model)

    def measure(self) -> _Measured:
        """Make every bundle, and measure its accuracy and its latency."""
        baselines, chains = self.run_passes()
        candidates = self.lower_all(baselines, chains)
        packs = self.tokenize_all(candidates)
        if self.recipe.bundle.tune:
            candidates = [
                self.tune(each, packs[each.key]) if each.runs_here else each for each in candidates
            ]
        predictions, failures = self.evaluate_all(candidates, packs)
        running = [each for each in candidates if each.key in predictions]
        latencies, benchmark = self.time_all(running)
        rows = Rows(
            recipe=self.recipe,
            store=self.store,
            task=self.task,
            candidates=candidates,
            predictions=predictions,
            failures=failures,
            found=self.notes,
            latencies=latencies,
            writing=self.time_writing(running),
            bundles={each.key: f"{BUNDLES}/{each.key}" for each in self.shipped(candidates)},
            label_names=self.label_names,
            splits={split: getattr(self.prepared.splits(), split) for split in self.splits},
        )
        return _Measured(baselines, chains, candidates, packs, predictions, rows, benchmark)

    def report(self) -> Report:
        """Measure, judge and publish."""
        measured = self.measure()
        candidates, packs = measured.candidates, measured.packs
        chains = [*measured.baselines, *measured.chains]
        layers = self.look_inside(candidates, packs, chains)
        on_devices = self.measure_on_devices(candidates)
        rows = replace(measured.rows, layers=layers, devices=on_devices.results)
        built = rows.build()
        described = [measured.baselines[0], *measured.chains]
        steps = {chain.variant: _describe_steps(chain) for chain in described}
        found = advice_for(_pass_names(self.recipe), self.plan.original)
        advice = {str(goal): each for goal, each in found.items()}
        report = Report(
            name=self.recipe.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            duration_s=round(time.monotonic() - self.started, 3),
            peak_memory_bytes=peak_memory_bytes(with_children=True),
            seed=self.recipe.seed,
            recipe=self.recipe.model_dump(mode="json"),
            budget=self.recipe.budget.model_dump(mode="json"),
            model=_model_facts(self.recipe, self.prepared.original),
            data=self.describe_data(),
            environment=measured.environment or self.environment,
            primary_shape=rows.primary,
            devices=dict(on_devices.facts),
            rows=tuple(built),
            steps=steps,
            advice=advice,
            verdict=judge(built, self.recipe.budget, rows.primary, advice=advice),
        )
        with self.store.writing_to(self.recipe.output):
            remove_leftovers(self.recipe.output)
            withdraw_report(self.recipe.output)
            self.publish(report, candidates, packs)
            return write_report(report, self.recipe.output, answers=rows.answers())

    def run_passes(self) -> tuple[list[_Chain], list[_Chain]]:
        """Bring the untouched model to every native precision, and run every variant's chain."""
        manager = self.prepared.manager(self.on_evaluation, self.teacher_memory)

        def chain(variant: str, passes: Sequence[Any], num_shared: int = 0) -> _Chain:
            steps = manager.run(passes, variant=variant, num_shared=num_shared)
            return _Chain(variant, (self.prepared.original, *steps))

        baselines = [chain(ORIGINAL, passes) for passes in self.plan.baselines.values()]
        shared = len(self.recipe.passes)
        chains = []
        for name, passes in self.recipe.chains.items():
            try:
                chains.append(chain(name, passes, shared))
            except PassError as error:
                if name not in self.may_fail:
                    raise
                interruption.leave_if_asked()  # a library may have made that error of it
                self.progress.warn(f"the variant {name} failed, and is left out: {error.what}")
                kept = {key: each for key, each in self.recipe.variants.items() if key != name}
                self.recipe = self.recipe.model_copy(update={"variants": kept})
        return baselines, chains

    def lower_all(self, baselines: Sequence[_Chain], chains: Sequence[_Chain]) -> list[Candidate]:
        """Make every bundle: the eager reference, each target's baselines, and the candidates."""
        reference = PyTorch()
        jobs: list[tuple[_Chain, Any, Target]] = [
            (_Chain(ORIGINAL, (self.prepared.original,)), "reference", reference)
        ]
        for target in self.targets:
            if target != reference:
                for precision, chain in zip(self.plan.baselines, baselines, strict=True):
                    if precision in target.native_precisions():
                        jobs.append((chain, "baseline", target))
            jobs.extend((chain, "candidate", target) for chain in chains)
        candidates: list[Candidate] = []
        for chain, kind, target in jobs:
            precision = chain.steps[-1].record.facts["precision"]
            which = f" ({precision})" if kind == "baseline" else ""
            self.progress.start(f"lower {chain.variant}{which} to {target.label}")
            candidate = lower(
                chain.variant,
                kind,
                target,
                chain.steps,
                store=self.store,
                hand_over=self.recipe.output / "hand_over",
                earlier=candidates,
            )
            candidates.append(candidate)
            kept = candidate.bundle or candidate.refusal
            self.progress.finish(_outcome(candidate), cached=kept is not None and kept.cached)
        return candidates

    def tokenize_all(self, candidates: Sequence[Candidate]) -> dict[str, StoredStep]:
        """Turn the held-out data into what each bundle's model reads; key -> packs."""
        packs = {}
        for each in candidates:
            if each.bundle is not None:
                packs[each.key] = evaluation_packs(
                    Bundle.open(each.bundle.folder, verify=False),
                    store=self.store,
                    splits=self.prepared.splits,
                    data_hash=self.prepared.data_hash,
                    names=self.splits,
                )
        return packs

    def evaluate_all(
        self, candidates: Sequence[Candidate], packs: Mapping[str, StoredStep]
    ) -> tuple[dict[str, Predictions], dict[str, str]]:
        """Predict the data with every bundle that runs here.

        Returns:
            Key -> predictions, and key -> reason for those that failed.
        """
        predictions: dict[str, Predictions] = {}
        failures: dict[str, str] = {}
        with Evaluators() as evaluators:
            for each in candidates:
                if not each.runs_here:
                    continue
                self.progress.start(f"evaluate {each.variant} on {each.target.label}")
                try:
                    step, predictions[each.key] = evaluate(
                        each,
                        store=self.store,
                        packs=packs[each.key],
                        environment=self.environment,
                        evaluators=evaluators,
                        names=self.splits,
                    )
                except (TargetError, BundleError, InputError, MissingLibraryError) as error:
                    failures[each.key] = self.store.without_paths(str(error))
                    self.progress.finish(error.what, cached=False)
                    continue
                last = self.splits[-1]
                unknown = packs[each.key].record.facts["unknown_rates"][last]
                if unknown > 0:
                    share = f"{significant(100 * unknown)}%"
                    self.notes[each.key] = f"{share} of the tokens of the {last} split are unknown"
                found = accuracy(self.task, predictions[each.key], last)
                line = f"{last} {found.measure} {100 * found.value:.1f}%"
                losses = predictions[each.key][last].losses
                if losses is not None:
                    line = f"{last} perplexity {significant(perplexity(losses))}"
                self.progress.finish(line, cached=step.cached)
        return predictions, failures

    def tune(self, candidate: Candidate, packs: StoredStep) -> Candidate:
        """The candidate with the runtime options that are fastest here, if there is a choice."""
        assert candidate.bundle is not None
        bundle = Bundle.open(candidate.bundle.folder, verify=False)
        if not offered(bundle, self.recipe.benchmark, has_pack=True):
            return candidate
        self.progress.start(f"tune {candidate.variant} on {candidate.target.label}")
        try:
            step = tuned(
                candidate,
                self.recipe.benchmark,
                store=self.store,
                packs=packs,
                environment=self.environment,
                on_progress=self.progress.update,
                again=self.measure_again,
            )
        except (TargetError, BundleError, InputError) as error:
            self.progress.finish(f"not tuned: {error.what}", cached=False)
            return candidate
        self.progress.finish(step.record.facts["notes"][-1], cached=step.cached)
        return replace(candidate, bundle=step)

    def look_inside(
        self,
        candidates: Sequence[Candidate],
        packs: Mapping[str, StoredStep],
        chains: Sequence[_Chain],
    ) -> dict[str, tuple[LayerError, ...]]:
        """The error of each layer of the quantized candidates; what fails there is left out."""
        steps = {chain.variant: chain.steps for chain in chains}
        found: dict[str, tuple[LayerError, ...]] = {}
        by_variant: dict[str, dict[str, tuple[LayerError, ...]]] = {}
        for each in candidates:
            if each.kind != "candidate" or not each.runs_here or each.precision == "fp32":
                continue
            self.progress.start(f"compare the layers of {each.variant} on {each.target.label}")
            try:
                step = measure_layers(
                    each,
                    steps[each.variant],
                    store=self.store,
                    packs=packs[each.key],
                    environment=self.environment,
                )
            except (TargetError, BundleError, InputError) as error:
                self.progress.finish(f"not compared: {error.what}", cached=False)
                continue
            if step is None:
                self.progress.finish("nothing to compare", cached=False)
                continue
            layers = tuple(map(LayerError.model_validate, step.record.facts["layers"]))
            found[each.key] = layers
            by_variant.setdefault(each.variant, {})[each.target.label] = layers
            self.progress.finish(f"largest error {worst_layer(layers)}", cached=step.cached)
        for variant, by_target in by_variant.items():
            for line in unlike(by_target):
                self.progress.warn(f"{variant}: {line}")
        return found

    def time_all(
        self, candidates: Sequence[Candidate]
    ) -> tuple[dict[str, CaseResult], Environment | None]:
        """Measure the latency of every bundle that runs here, side by side."""
        if not candidates:
            return {}, None
        self.progress.start(f"measure the latency of {len(candidates)} bundles")
        step, results = measure_latency(
            candidates,
            self.recipe.benchmark,
            store=self.store,
            environment=self.environment,
            on_progress=self.progress.update,
            again=self.measure_again,
            purpose=self.purpose,
        )
        self.progress.finish("", cached=step.cached)
        return results, Environment.model_validate(step.record.facts["environment"])

    def time_writing(self, candidates: Sequence[Candidate]) -> dict[str, Writing]:
        """Measure how fast the bundles of language models write, by their keys."""
        writers, num_tokens = writers_among(candidates, self.recipe.benchmark)
        if not writers:
            return {}
        if num_tokens < 2:
            self.progress.warn(
                "nothing is written: a prompt of benchmark.sequence_length, "
                f"{self.recipe.benchmark.sequence_length} tokens, leaves no room for 2 more"
            )
            return {}
        self.progress.start(f"write {num_tokens} tokens with each bundle")
        step, found = measure_writing_speed(
            writers,
            self.recipe.benchmark,
            num_tokens,
            store=self.store,
            environment=self.environment,
            on_progress=self.progress.update,
            again=self.measure_again,
            purpose=self.purpose,
        )
        self.progress.finish("", cached=step.cached)
        for key, reason in step.record.facts["failures"].items():
            line = f"it did not write: {reason}"
            self.notes[key] = f"{self.notes[key]}; {line}" if key in self.notes else line
            self.progress.warn(f"{key}: {line}")
        return found

    def measure_on_devices(self, candidates: Sequence[Candidate]) -> OnDevices:
        """Measure every bundle on the devices of the recipe, if it names any."""
        if self.recipe.devices is None:
            return OnDevices()
        return measure_on_devices(
            self.recipe.devices,
            candidates,
            self.recipe.benchmark,
            store=self.store,
            progress=self.progress,
            again=self.measure_again,
        )

    def shipped(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those whose bundles go beside the report."""
        return [each for each in candidates if each.kind == "candidate" and each.bundle is not None]

    def publish(
        self,
        report: Report,
        candidates: Sequence[Candidate],
        packs: Mapping[str, StoredStep],
    ) -> None:
        """Write the bundles into the output folder, with what the report says of each."""
        publisher = Publisher(
            recipe=self.recipe,
            model=report.model,
            checkpoint_files=self.prepared.original.record.inputs["files"],
            data_hash=self.prepared.data_hash,
            split_hashes=self.prepared.split_hashes,
            environment=report.environment,
        )
        for candidate, row in zip(candidates, report.rows, strict=True):
            if row.bundle is not None and candidate.bundle is not None:
                note = publisher.publish(
                    candidate.bundle,
                    row,
                    report.steps[candidate.variant],
                    packs[candidate.key],
                    self.recipe.output / row.bundle,
                )
                if note is not None:
                    self.progress.warn(note)
        named = {row.bundle for row in report.rows if row.bundle is not None}
        for line in set_aside(self.recipe.output, named):
            self.progress.warn(line)

    def describe_data(self) -> dict[str, Any]:
        splits = self.prepared.splits()
        return {
            "sha256": self.prepared.data_hash,
            "labels": list(self.label_names),
            **{split: len(getattr(splits, split)) for split in SPLITS},
        }


def _outcome(candidate: Candidate) -> str:
    if candidate.bundle is None:
        return f"{candidate.status}: {(candidate.reason or '').splitlines()[0]}"
    size = candidate.bundle.record.facts["size_bytes"] / 1e6
    return f"{size:.1f} MB" + ("" if candidate.runs_here else ", cannot run here")


def _pass_names(recipe: Recipe) -> frozenset[str]:
    return frozenset(each.name for passes in recipe.chains.values() for each in passes)


def _model_facts(recipe: Recipe, original: StoredStep) -> ModelFacts:
    facts = original.record.facts
    return ModelFacts(
        name=recipe.model.name,
        sha256=original.content_hash,
        architecture=facts["architecture"],
        num_parameters=facts["num_parameters"],
        size_bytes=facts["size_bytes"],
    )


def _describe_steps(chain: _Chain) -> tuple[Step, ...]:
    described = []
    for step in chain.steps[1:]:
        record = step.record
        described.append(
            Step(
                key=record.key,
                pass_name=record.kind.partition(":")[2],
                settings=record.inputs["settings"],
                cached=step.cached,
                duration_s=record.duration_s,
                num_parameters=record.facts["num_parameters"],
                size_bytes=record.facts["size_bytes"],
                architecture=record.facts["architecture"],
                metrics=record.facts["metrics"],
                notes=tuple(record.facts["notes"]),
                history=tuple(record.facts["history"]),
            )
        )
    return tuple(described)
