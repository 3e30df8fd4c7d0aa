"""`compressor auto`: from a budget to a recipe, by shapes that are solved for and trained."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from compressor import distributed, interruption
from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.errors import BudgetError, PassError
from compressor.model import TorchModel, load_model
from compressor.passes import Pass
from compressor.passes.distill import Distill
from compressor.passes.export import Export
from compressor.passes.prune import Prune
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.planning import validate_recipe
from compressor.preparation import prepare, runnable_targets
from compressor.progress import Progress
from compressor.pruning.layers import spread_layers
from compressor.recipe.schema import Recipe
from compressor.search.clock import Clock, Deadline, OutOfTimeError, Pace, fitting_epochs
from compressor.search.found import Search, Trial, holds, int8_variants, variants
from compressor.search.probing import Prober
from compressor.search.size import embeddings, room
from compressor.search.solver import ImportanceCurves, Room, Solution, solve
from compressor.store import RunStore, StoredStep
from compressor.tasks import get_task
from compressor.training.distillation import read_unlabeled
from compressor.training.losses import logits_kl
from compressor.training.teacher import TeacherMemory
from targets.answers import Units
from targets.answers.base import shared_units
from targets.environment import library_versions
from targets.networks import network_source
from targets.wording import plural

__all__ = ["AutoSettings", "search"]

IMPORTANCE_VERSION = 1
NUM_EXAMPLES = 512
LADDER = (1.0, 1.5, 2.0, 2.5, 3.0, 3.6, 4.3, 5.2, 6.2, 7.4, 9.0, 11.0, 13.0, 15.5, 18.5, 22.0, 27.0)
"""Speeds to look at, as multiples of the whole model's at the same precision."""
MARGIN = 0.03
"""Of a latency that is asked for: what is predicted of a shape is off by one to two hundredths, and
one that is measured to be a hundredth too slow would miss the budget."""
MAX_DEPTHS = 3
"""Numbers of layers that are tried for one latency."""
CHOOSING_SHARE = 0.5
"""Of the time for a latency: no further number of layers is tried that would end after it."""
FEW_ROWS = 10_250
"""Of more training rows there are fewer epochs: trainings take as long."""
BATCH = 32
"""Rows of a step of a training, or as many of them as the processes can share."""
LONG_S = 60.0
"""Work that is told of where it is done again and again."""
HOPELESS_POINTS = 3.0
"""A shape that misses the accuracy by more after a short training is not trained for long."""


class AutoSettings(BaseModel):
    """How a search is done, beside its recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    time_limit_s: float = 3600.0
    """Nothing is begun that is not expected to end within it; the first training, of which that is
    not known, ends with it."""
    short_epochs: int = 4
    """Of the training that chooses between numbers of layers."""
    epochs: int = 24
    """Of the training of a shape that was chosen. Fewer where there is much to train on: trainings
    take as long. Fewer too where the time is short."""
    keep_first: int | None = None
    """Of the vocabulary; see `compressor.passes.trim_vocabulary`. None follows from the size in the
    budget."""
    unlabeled: Path | None = None
    """Inputs without labels to train on as well; see `compressor.passes.distill`."""


def search(
    recipe: Recipe,
    settings: AutoSettings,
    *,
    store: RunStore,
    progress: Progress,
    memory: TeacherMemory | None = None,
) -> Search:
    """Find the passes for a recipe that has none.

    The latency table of the first target that runs here says how fast any shape would be, and a
    solver which shape of that latency keeps the most importance. Where the budget has a latency,
    that is the one. Otherwise speeds are bisected for the fastest whose accuracy holds on the
    validation data. Which layers a shape has is chosen by a short training of the best few.

    Args:
        recipe: Model, data, targets and budget.
        settings: Of the search.
        store: Every training is kept; the same search goes on where it was interrupted.
        progress: Is told what happens.
        memory: What the untouched model says, where several searches share it; it is the caller's
            to clear then.

    Raises:
        RecipeError: The recipe does not hold.
        TargetError: No target runs here.
        BudgetError: No shape can meet the latency.
    """
    own = TeacherMemory()
    try:
        with store.run(f"{recipe.name}, search", recipe.output):
            return _Searcher(recipe, settings, store, progress, memory or own).search()
    finally:
        own.close()


class _Searcher:
    def __init__(
        self,
        recipe: Recipe,
        settings: AutoSettings,
        store: RunStore,
        progress: Progress,
        memory: TeacherMemory,
    ) -> None:
        self.clock = Clock(settings.time_limit_s)
        self.recipe = recipe
        self.settings = settings
        self.store = store
        self.progress = progress
        plan = validate_recipe(
            recipe.model_copy(update={"passes": (Export(),), "variants": variants(recipe.targets)})
        )
        self.architecture: Architecture = plan.original
        _check(self.architecture)
        self.prepared = prepare(recipe, plan, store=store, progress=progress)
        self._check_layers()
        chosen = embeddings(self.architecture, recipe.budget, self._num_tokens)
        self.trim, self.table_bits = chosen.trim, chosen.bits
        if settings.keep_first is not None:
            self.trim = TrimVocabulary(keep_first=settings.keep_first)
        self.memory = memory
        self.manager = replace(
            self.prepared.manager(teacher_memory=memory), progress=Deadline(progress, self.clock)
        )
        self.share_of_epochs = self._share_of_epochs()
        self.room: Room | None = None
        """For the layers, once the precision is known."""
        self.failure: PassError | None = None
        """Of the first training that failed."""
        self.clock.count([self.prepared.original])

    def _check_layers(self) -> None:
        """Check that the layers can be cut, which a config does not tell.

        Raises:
            PassError: They cannot.
        """
        if not self.prepared.original.record.facts["has_known_layers"]:
            raise _another_kind(self.architecture, "its layers are of an unknown kind")

    def _num_tokens(self, trim: TrimVocabulary) -> int:
        """Tokens that stay."""
        model = TorchModel.load(self.prepared.original.folder)
        return len(trim.choose(model, self.prepared.splits().train.inputs))

    def _share_of_epochs(self) -> float:
        """Of those that are wanted of a few labelled rows: where there are more rows, an epoch
        counts for more."""
        labelled = len(self.prepared.splits().train)
        share = min(1.0, FEW_ROWS / labelled)
        path = self.settings.unlabeled
        if path is None:
            return share
        model = TorchModel.load(self.prepared.original.folder)
        return share * labelled / (labelled + len(read_unlabeled(path, model)))

    def search(self) -> Search:
        prober = Prober(
            store=self.store,
            original=self.prepared.original,
            splits=self.prepared.splits,
            settings=self.recipe.benchmark,
            multiple=self.recipe.width_multiple,
            progress=self.progress,
        )
        target = runnable_targets(self.recipe, form="onnx")[0]
        table, step = prober.table(self.architecture, target, variants([target]))
        self.clock.count([step])
        self.room = room(
            self.architecture,
            self.recipe.budget,
            lambda: self._num_tokens(self.trim),
            self.table_bits,
            precision=table.precision,
            multiple=self.recipe.width_multiple,
        )
        found = Search(
            table,
            table.predict(self.architecture.layers),
            self.table_bits,
            share_of_epochs=self.share_of_epochs,
        )
        curves = self._curves()
        limit = self.recipe.budget.max_latency_ms
        try:
            if limit is not None:
                aimed = (1 - MARGIN) * limit
                within = aimed if self._solve(found, curves, aimed) else limit
                self._at(found, curves, within)
            else:
                self._bisect(found, curves)
            if found.best is not None:
                found.int8_drop_points = self._int8_drop(found, found.best)
        except OutOfTimeError:
            found.stopped = f"the time limit of {self.settings.time_limit_s / 60:.0f} min"
            if found.best is not None:
                found.int8_drop_points = self._int8_drop(found, found.best)
        except KeyboardInterrupt:
            if found.best is None:
                raise
            interruption.forget()
            found.stopped = "it was interrupted"
        if not found.trials and self.failure is not None:
            raise self.failure
        return found

    def _int8_drop(self, found: Search, trial: Trial) -> float | None:
        """See `Search.int8_drop_points`."""
        int8 = int8_variants(self.table_bits).get(found.table.variant)
        if int8 is None:
            return None
        chain = (*trial.passes, Export(), *int8)
        steps = self.manager.run(chain)
        self.clock.count(steps)
        model = load_model(steps[-1].folder)
        answers = get_task(model.task).answers
        units = answer(model, self.prepared.splits().validation)
        return self._drop(answers.overall(units))

    def _drop(self, accuracy: float) -> float:
        """Points that are lost on the validation data."""
        before: float = self.prepared.original.record.facts["metrics"]["validation_accuracy"]
        # Shares of a count: what they differ by is not a matter of the last bit.
        return round(100 * (before - accuracy), 6)

    def _bisect(self, found: Search, curves: ImportanceCurves) -> None:
        low, high = -1, len(LADDER)  # low holds, high does not
        while high - low > 1:
            middle = (low + high) // 2
            limit = found.whole_ms / LADDER[middle]
            share = 1 / math.ceil(math.log2(high - low))
            holds = self._at(found, curves, limit, share=share)
            low, high = (middle, high) if holds else (low, middle)

    def _at(
        self, found: Search, curves: ImportanceCurves, limit_ms: float, *, share: float = 1.0
    ) -> bool:
        """Train the best shape within a latency, in a share of the time; whether it holds."""
        begun_s = self.clock.spent_s
        ends_s = begun_s + share * (self.clock.limit_s - begun_s)
        solutions = self._solve(found, curves, limit_ms)
        if not solutions:
            if self.recipe.budget.max_latency_ms is not None:
                raise BudgetError(
                    "no shape of this model is that fast",
                    where=found.table.target,
                    given=f"{limit_ms:g} ms; {found.table.base_ms:.3g} ms are outside its layers",
                    fix="allow more time per run, or use a shorter sequence or a smaller model",
                )
            return False
        candidates = self._candidates(found, curves, limit_ms, solutions)
        bisects = self.recipe.budget.max_latency_ms is None
        best: Trial | None = None
        if len(candidates) > 1 or self.clock.pace is None:
            best = self._choose(found, candidates, begun_s + CHOOSING_SHARE * (ends_s - begun_s))
            if best is None:
                return False
            allowed = self.recipe.budget.max_accuracy_drop
            if bisects and allowed is not None and best.drop_points > allowed + HOPELESS_POINTS:
                return False
            candidates = [best.solution]
        epochs = self._epochs(self.settings.epochs)
        if best and epochs <= self.short_epochs:
            return holds(best, self.recipe.budget)
        if epochs > self.short_epochs and self.clock.pace is not None:
            left_s = ends_s - self.clock.spent_s
            fitting = fitting_epochs(
                epochs,
                lambda count: (
                    self.manager.is_begun(self._passes(candidates[0], count))
                    or self._expected_s(count) <= left_s
                ),
                more_than=self.short_epochs if best else 0,
            )
            if not fitting and bisects and best:
                return holds(best, self.recipe.budget)
            if not fitting:
                raise OutOfTimeError
            epochs = fitting
        trial = self._try(found, candidates[0], epochs) or best
        return trial is not None and holds(trial, self.recipe.budget)

    def _choose(self, found: Search, candidates: Sequence[Solution], ends_s: float) -> Trial | None:
        """The best of short trainings: of the first shape, and of others that there is time for."""
        trials: list[tuple[Trial, Pace | None]] = []
        for each in candidates:
            ends_then_s = self.clock.spent_s + self._expected_s(self.short_epochs)
            is_begun = self.manager.is_begun(self._passes(each, self.short_epochs))
            if trials and ends_then_s > ends_s and not is_begun:
                break
            trial = self._try(found, each, self.short_epochs)
            if trial is not None:
                trials.append((trial, self.clock.pace))
        if not trials:
            return None
        best, self.clock.pace = min(trials, key=lambda each: each[0].loss)
        return best

    def _try(self, found: Search, solution: Solution, epochs: int) -> Trial | None:
        """Train a shape; None where that fails, and would fail again: the search goes on."""
        try:
            return self._train(found, solution, epochs)
        except PassError as error:
            interruption.leave_if_asked()  # a library may have made that error of it
            self.failure = self.failure or error
            count = len(solution.kept)
            self.progress.warn(f"a training of {plural(count, 'layer')} failed: {error.what}")
            return None

    def _solve(
        self,
        found: Search,
        curves: ImportanceCurves,
        limit_ms: float,
        layers: Sequence[int] | None = None,
    ) -> dict[int, Solution]:
        return solve(
            self.architecture,
            found.table,
            curves,
            limit_ms=limit_ms,
            multiple=self.recipe.width_multiple,
            layers=layers,
            room=self.room,
        )

    def _candidates(
        self,
        found: Search,
        curves: ImportanceCurves,
        limit_ms: float,
        solutions: Mapping[int, Solution],
    ) -> list[Solution]:
        """The shapes to try: of the best depths with layers spread evenly, then as solved for.

        Importance says nothing of what a cut does to the layers after it, so which layers stay is
        better chosen blindly: layers 1, 3 and 5 of 6 lost 0.4 points on TREC-6 where the solver's
        0, 1 and 2 lost 1.0 at the same latency. Nor does it see what depth is worth once trained:
        on Rotten Tomatoes two layers lost 1.4 points, and five of one head, in less time, none. The
        deepest that fits is always tried.
        """
        ranked = sorted(solutions.values(), key=lambda each: each.lost)
        deepest = max(solutions.values(), key=lambda each: len(each.kept))
        if deepest not in ranked[:2]:  # the first ones are tried where there is not time for all
            ranked = [ranked[0], deepest, *(each for each in ranked[1:] if each is not deepest)]
        ranked = ranked[:MAX_DEPTHS]
        num_layers = len(self.architecture.layers)
        candidates: list[Solution] = []
        for each in ranked:
            count = len(each.kept)
            even = self._solve(found, curves, limit_ms, spread_layers(count, num_layers))
            candidates += even.values()
        if ranked[0] not in candidates:
            candidates.append(ranked[0])
        return candidates

    def _train(self, found: Search, solution: Solution, epochs: int) -> Trial:
        passes = self._passes(solution, epochs)
        ends_then_s = self.clock.spent_s + self._expected_s(epochs)
        if ends_then_s > self.clock.limit_s and not self.manager.is_begun(passes):
            raise OutOfTimeError  # one that is there takes no time, one that was begun was fitting
        begun = time.monotonic()
        steps = self.manager.run(passes)
        self.clock.count(steps, time.monotonic() - begun)
        self.clock.trained(Pace.of(steps, epochs))
        if not found.trials:
            self._warn_of_labels(steps[-1])
        drop = self._drop(steps[-1].record.facts["metrics"]["validation_accuracy"])
        trial = Trial(solution, epochs, drop, passes, self._distance(steps[-1].folder))
        found.add(trial, self.recipe.budget)
        self.progress.start(f"{len(solution.kept)} layers, {solution.latency_ms:.3g} ms")
        speed = found.whole_ms / solution.latency_ms
        line = f"{speed:.1f}x the whole model in {found.table.variant}"
        points = f"{0.0 - trial.drop_points:+.1f} points on the validation data"
        best = "; the best so far" if found.best is trial else ""
        self.progress.finish(f"{line}, {points} after {epochs} epochs{best}", cached=False)
        return trial

    def _warn_of_labels(self, trained: StoredStep) -> None:
        """Tell where the rows are to be labelled again by each training."""
        pace = self.clock.pace
        is_kept = not self.memory.is_empty or distributed.size() > 1  # of several it never is
        if pace is None or pace.label_s <= LONG_S or trained.cached or is_kept:
            return
        self.progress.warn(
            "the answers of the untouched model to the training data "
            f"({pace.label_s / 60:.0f} min of work) could not be kept, so each training computes "
            "them again: free space on the disk of the store, or name another one with --store"
        )

    def _distance(self, folder: Path) -> float | None:
        """See `Trial.distance`."""
        split = self.prepared.splits().validation
        ours, theirs = shared_units(answer(load_model(folder), split), self._untouched)
        shape = (len(theirs), self.architecture.num_labels)
        if theirs.labels.ndim != 1 or theirs.scores.shape != shape:
            return None
        student, teacher = (torch.from_numpy(each.scores).double() for each in (ours, theirs))
        return float(logits_kl(student, teacher, temperature=1.0))

    @functools.cached_property
    def _untouched(self) -> Units:
        """What the untouched model answers to the validation data."""
        model = load_model(self.prepared.original.folder)
        return answer(model, self.prepared.splits().validation)

    def _epochs(self, count: int) -> int:
        """So many of a few labelled rows, in epochs of all that there is."""
        return max(1, round(count * self.share_of_epochs))

    @property
    def short_epochs(self) -> int:
        """Of the training that chooses between numbers of layers."""
        return self._epochs(self.settings.short_epochs)

    def _expected_s(self, epochs: int) -> float:
        """What a training would take now, in seconds."""
        return self.clock.expected_s(epochs, labels=self.memory.is_empty)

    def _passes(self, solution: Solution, epochs: int) -> tuple[Pass, ...]:
        processes = distributed.size()
        distill = Distill(
            epochs=epochs,
            batch_size=max(1, BATCH // processes) * processes,  # what they can share evenly
            layer_map=tuple((number, each.layer) for number, each in enumerate(solution.kept)),
            unlabeled=self.settings.unlabeled,
            **get_task(self.recipe.task).distillation,
        )
        prune = Prune(shape=solution.kept, importance="second-order", refit=True)
        if not self._trims:
            return (prune, distill)
        return (self.trim, prune, distill)

    @property
    def _trims(self) -> bool:
        """Whether tokens go: of embeddings, whose neighbours that moves, only for their size."""
        if not self.architecture.vocabulary_size:
            return False
        has_size = self.recipe.budget.max_size_mb is not None
        return self.architecture.has_labels or has_size or self.settings.keep_first is not None

    def _curves(self) -> ImportanceCurves:
        def make(files: Path, work: Path) -> dict[str, Any]:
            from compressor.pruning.importance import taylor_scores
            from compressor.pruning.prune import TAYLOR_BATCH, sample_batches

            model = TorchModel.load(self.prepared.original.folder)
            batches = sample_batches(
                model,
                self.prepared.splits().train,
                num_rows=NUM_EXAMPLES,
                batch_size=TAYLOR_BATCH,
                seed=self.recipe.seed,
            )
            scores = taylor_scores(
                model.module,
                batches,
                task=get_task(model.task),
                progress=lambda count: self.progress.update(count / len(batches), "batches"),
            )
            return {
                "heads": [each.tolist() for each in scores.heads],
                "ffn": [each.tolist() for each in scores.ffn],
            }

        self.progress.start("measure what each head and neuron is worth")
        step = self.store.step(
            "importance",
            {
                "model": self.prepared.original.content_hash,
                "data": self.prepared.data_hash,
                "seed": self.recipe.seed,
                "libraries": library_versions(("torch", "transformers"))
                | network_source(self.prepared.original.folder),
                "version": IMPORTANCE_VERSION,
            },
            make,
        )
        facts = step.record.facts
        self.clock.count([step])
        self.progress.finish("", cached=step.cached)
        heads, ffn = ([np.asarray(each) for each in facts[name]] for name in ("heads", "ffn"))
        return ImportanceCurves.of(heads, ffn)


def _check(architecture: Architecture) -> None:
    """Check that a model has layers that may go, and an accuracy.

    Raises:
        PassError: It has not.
    """
    if architecture.writes:
        raise _another_kind(architecture, "it has an encoder and a decoder")
    if architecture.is_decoder:
        raise _another_kind(architecture, "it writes texts, and is judged by its perplexity")
    if not architecture.layers or architecture.has_unknown_layers:
        raise _another_kind(architecture, "it has no layers of a known transformer")
    if architecture.tapped_layers:
        raise _another_kind(
            architecture, "another part of the network reads its layers: none can be dropped"
        )


def _another_kind(architecture: Architecture, reason: str) -> PassError:
    return PassError(
        "auto searches for the shape of a single stack of layers, judged by accuracy, and this "
        "model is of another kind",
        where="model",
        given=f"{architecture.describe()}: {reason}",
        fix="use a recipe: `compressor recipes` lists them; int8 works for every model",
    )
