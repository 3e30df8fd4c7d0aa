"""`compressor auto` on a small model: from a budget to a recipe that repeats the result."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.cli.auto import _search_and_run
from compressor.data import DataSpec
from compressor.errors import BudgetError, PassError
from compressor.gate.budget import Budget
from compressor.model import load_model
from compressor.passes.distill import Distill
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.pipeline import run
from compressor.progress import Silent
from compressor.pruning.planning import KeptLayer
from compressor.recipe import Recipe, load_recipe
from compressor.report.files import read_report
from compressor.search import auto, clock
from compressor.search.auto import AutoSettings, _Searcher, search
from compressor.search.clock import Clock, Deadline, OutOfTimeError, Pace
from compressor.search.found import KEEP_FLOAT, Search, Trial, found_recipe, int8_variants
from compressor.search.probing import Prober
from compressor.search.size import Embeddings, embeddings, layer_bytes, room
from compressor.search.solver import Room, Solution
from compressor.store import RunStore, StoredStep
from compressor.training.teacher import TeacherMemory
from targets.benchmark import BenchmarkSettings
from targets.errors import TargetError
from targets.registry import get
from targets.shapes import LayerShape


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    """One for all tests: the latency table and the trainings are made once."""
    return RunStore(tmp_path_factory.mktemp("auto") / "store")


@pytest.fixture
def recipe(home: Any, tmp_path: Any) -> Recipe:
    return Recipe(
        name="auto",
        model=home / "model",
        task="text-classification",
        data=DataSpec(**{name: home / f"{name}.csv" for name in ("train", "validation", "test")}),
        targets=(get("onnxruntime"),),
        budget=Budget(max_accuracy_drop=100.0),
        benchmark=BenchmarkSettings(sequence_length=16),
        output=tmp_path / "out",
    )


@pytest.mark.slow
def test_the_recipe_that_was_found_gives_the_bundles_again(
    home: Any, store: RunStore, compressor: Any, tmp_path: Any
) -> None:
    output = tmp_path / "out"
    options = (
        "--model", home / "model", "--data", home, "--output", output, "--store", store.root,
        "--target", "onnxruntime", "--max-drop", "100", "--sequence-length", "16",
        "--max-length", "20",
    )  # fmt: skip
    outcome = compressor("auto", *options)
    assert outcome.code == 0, outcome.err
    assert re.search(r"latency: \S+ ms predicted, \S+ ms measured \([+-]\d+%\)", outcome.out)
    assert re.search(r"took: .* s, at most \S+ [MG]B of memory", outcome.out)
    searched = json.loads((output / "search.json").read_text())
    [best] = [each for each in searched["trials"] if each["is_best"]]
    [measured] = searched["measured"]
    assert measured["predicted_ms"] == best["predicted_ms"]
    assert measured["variant"] == searched["table"]["variant"]
    assert measured["low_ms"] <= measured["median_ms"] <= measured["high_ms"]
    found = load_recipe(output / "recipe.yaml")
    assert [each.name for each in found.passes] == ["trim_vocabulary", "prune", "distill", "export"]
    assert found.budget.max_accuracy_drop == 100
    assert found.data.max_length == 20
    bundles = {
        path.name: (path / "manifest.json").read_bytes() for path in output.glob("bundles/*")
    }
    assert bundles.keys() == {f"{name}-onnxruntime" for name in ("fp32", "int8", "int8-dynamic")}

    again = compressor("run", output / "recipe.yaml", "--store", store.root)
    assert again.code == 0, again.err
    made = [line for line in again.out.splitlines() if re.search(r"^  \S.* \d+\.\d s  ", line)]
    assert made == []  # all of it is in the store
    for name, manifest in bundles.items():
        assert (output / "bundles" / name / "manifest.json").read_bytes() == manifest
    chosen = [row for row in read_report(output).rows if row.chosen]
    assert [row.target for row in chosen] == ["onnxruntime"]

    outcome = compressor("auto", *options)  # the same search, from the store
    assert outcome.code == 0, outcome.err
    assert load_recipe(output / "recipe.yaml") == found


@pytest.mark.slow
def test_a_latency_gives_a_shape_that_is_predicted_to_keep_it(
    recipe: Recipe, store: RunStore
) -> None:
    whole = search(recipe, AutoSettings(epochs=1, short_epochs=1), store=store, progress=Silent())
    limit = 1.001 * whole.table.predict((LayerShape(1, 8),))  # what a small machine's noise allows
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=limit)
    wanted = recipe.model_copy(update={"budget": budget})
    found = search(wanted, AutoSettings(epochs=1, short_epochs=1), store=store, progress=Silent())
    assert found.best is not None
    assert found.best.solution.latency_ms <= limit
    assert found.best.drop_points == min(each.drop_points for each in found.trials)
    # Trainings that are as long as those that choose are not done again.
    assert not any(
        each.passes == other.passes
        for number, each in enumerate(found.trials)
        for other in found.trials[:number]
    )
    assert found.stopped is None


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "aimed"), [(1.5, 0.97 * 1.5), (1.001, 1.001)])
def test_of_a_latency_some_is_left_for_what_was_not_predicted(
    recipe: Recipe,
    store: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    aimed: float,
) -> None:
    """Where some shape is as fast."""
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": budget})
    settings = AutoSettings(epochs=1, short_epochs=1)
    table = search(wanted, settings, store=store, progress=Silent()).table
    fastest = table.predict((LayerShape(1, 8),))
    asked: list[float] = []
    monkeypatch.setattr(
        auto._Searcher, "_at", lambda searcher, found, curves, limit: asked.append(limit)
    )
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=factor * fastest)
    search(wanted.model_copy(update={"budget": budget}), settings, store=store, progress=Silent())
    assert asked == [pytest.approx(aimed * fastest)]


@pytest.mark.slow
def test_texts_without_labels_are_trained_on_in_fewer_epochs(
    home: Any, recipe: Recipe, store: RunStore, tmp_path: Any
) -> None:
    more = tmp_path / "more.txt"
    labelled = len((home / "train.csv").read_text().splitlines()) - 1
    more.write_text("the birds sing\n" * 3 * labelled)
    settings = AutoSettings(epochs=8, short_epochs=4, unlabeled=more)
    limit = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": limit})
    found = search(wanted, settings, store=store, progress=Silent())
    assert [trial.epochs for trial in found.trials] == [1] * (len(found.trials) - 1) + [2]
    assert found.best is not None
    distill = found.best.passes[-1]
    assert isinstance(distill, Distill)
    assert distill.unlabeled == more


@pytest.mark.slow
def test_of_many_rows_there_are_fewer_epochs(
    home: Any, recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = len((home / "train.csv").read_text().splitlines()) - 1
    monkeypatch.setattr(auto, "FEW_ROWS", labelled / 4)
    limit = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": limit})
    settings = AutoSettings(epochs=8, short_epochs=4)
    found = search(wanted, settings, store=store, progress=Silent())
    assert [trial.epochs for trial in found.trials] == [1] * (len(found.trials) - 1) + [2]


BERT = Architecture(
    family="bert",
    layers=(LayerShape(12, 1536),) * 6,
    head_size=32,
    hidden_size=384,
    vocabulary_size=30_522,
    num_labels=6,
    max_positions=512,
)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"writes": True}, "it has an encoder and a decoder"),
        ({"is_decoder": True}, "it writes texts, and is judged by its perplexity"),
        ({"layers": ()}, "it has no layers of a known transformer"),
        ({"has_unknown_layers": True}, "it has no layers of a known transformer"),
        (
            {"tapped_layers": (2,)},
            "another part of the network reads its layers: none can be dropped",
        ),
    ],
    ids=str,
)
def test_models_of_other_kinds_are_refused(changes: dict[str, Any], reason: str) -> None:
    auto._check(BERT)
    with pytest.raises(PassError, match="of another kind") as caught:
        auto._check(dataclasses.replace(BERT, **changes))
    assert str(caught.value.given).endswith(f": {reason}")
    assert "compressor recipes" in str(caught.value.fix)


@pytest.mark.slow
def test_a_latency_that_no_shape_can_keep(recipe: Recipe, store: RunStore) -> None:
    budget = Budget(max_latency_ms=1e-6)
    wanted = recipe.model_copy(update={"budget": budget})
    with pytest.raises(BudgetError, match="no shape of this model is that fast") as error:
        search(wanted, AutoSettings(), store=store, progress=Silent())
    assert "are outside its layers" in str(error.value.given)


@pytest.mark.slow
def test_the_time_limit_ends_the_search(recipe: Recipe, store: RunStore) -> None:
    found = search(recipe, AutoSettings(time_limit_s=0), store=store, progress=Silent())
    assert found.stopped == "the time limit of 0 min"
    assert found.best is None
    assert found.trials == []


@pytest.mark.slow
def test_the_first_training_ends_with_the_time_and_what_it_has_stays(
    recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(Silent):
        """The time is over once the first epoch is."""

        def update(self, fraction: float, line: str) -> None:
            now[0] = 1e6 if line.startswith("epoch 2") else now[0]

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    settings = AutoSettings(time_limit_s=1e5, epochs=300, short_epochs=200)
    found = search(recipe, settings, store=store, progress=Slow())
    assert (found.best, found.trials) == (None, [])
    assert found.stopped == "the time limit of 1667 min"
    [checkpoints] = [path.parent for path in store.root.glob("partial/*/work/*/sealed.json")]
    assert checkpoints


def test_later_trainings_end_as_they_are_expected_to() -> None:
    timed = Clock(-1.0)
    progress = Deadline(Silent(), timed)
    with pytest.raises(OutOfTimeError):
        progress.update(0.5, "epoch 1")
    timed.trained(Pace(epoch_s=1.0))
    progress.update(0.5, "epoch 1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit_s", "epochs", "stopped"),
    [
        (10_000, [4, 4, 4, 24], None),
        (300, [4, 4, 4, 18], None),  # nothing is left out before half of the time is over
        (160, [4, 4, 6], None),
        (60, [4], "the time limit of 1 min"),
    ],
)
def test_where_time_is_short_less_is_tried_and_trained(
    recipe: Recipe,
    store: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    limit_s: float,
    epochs: list[int],
    stopped: str | None,
) -> None:
    """An epoch takes 10 seconds of a clock that stands still otherwise."""
    now = [0.0]

    def train(searcher: Any, found: Search, solution: Solution, epochs: int) -> Trial:
        now[0] += 10 * epochs
        searcher.clock.trained(Pace(epoch_s=10))
        trial = Trial(solution, epochs, 1 / epochs, ())
        found.add(trial, searcher.recipe.budget)
        return trial

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(auto._Searcher, "_train", train)
    monkeypatch.setattr(Clock, "count", lambda clock, steps: [])
    monkeypatch.setattr(auto._Searcher, "_int8_drop", lambda searcher, *given: 0.0)
    monkeypatch.setattr(
        auto._Searcher, "_candidates", lambda searcher, *given: [*given[-1].values()] * 3
    )
    shape = Solution((KeptLayer(layer=0, heads=1, ffn=8),), 1.0, 0.0)
    monkeypatch.setattr(auto._Searcher, "_solve", lambda searcher, *given: {1: shape})
    wanted = recipe.model_copy(update={"budget": Budget(max_latency_ms=1.0)})
    found = search(wanted, AutoSettings(time_limit_s=limit_s), store=store, progress=Silent())
    assert [trial.epochs for trial in found.trials] == epochs
    assert found.stopped == stopped
    assert found.best is not None
    assert found.best.epochs == max(epochs)


@pytest.mark.slow
def test_a_search_that_goes_on_has_the_time_that_it_had(
    recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings that are there already count as if they were done now."""
    settings = AutoSettings(epochs=2, short_epochs=1)
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": budget})
    first = search(wanted, settings, store=store, progress=Silent())
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: 0.0))
    searcher = make_searcher(wanted, settings, store)
    again = searcher.search()
    assert [each.passes for each in again.trials] == [each.passes for each in first.trials]
    chains = [searcher.manager.run(each.passes) for each in again.trials]
    steps = {step.record.key: step.record.duration_s for chain in chains for step in chain}
    original = searcher.prepared.original.content_hash
    tables = [  # other tests have theirs in this store
        each
        for each in store.steps()
        if original
        == each.inputs.get({"latency table": "original", "importance": "model"}.get(each.kind, ""))
    ]
    searched = {**steps, **{each.key: each.duration_s for each in tables}}
    assert searcher.clock.spent_s >= sum(searched.values())
    every = [StoredStep(each, store.root, cached=True) for each in store.steps()]
    uncounted = {step.record.key for step in searcher.clock.count(every)}
    assert not uncounted & searched.keys()


def make_searcher(recipe: Recipe, settings: AutoSettings, store: RunStore) -> Any:
    return auto._Searcher(recipe, settings, store, Silent(), TeacherMemory())


@pytest.mark.slow
def test_what_a_search_made_stays_when_the_store_is_pruned(recipe: Recipe, tmp_path: Path) -> None:
    """Also when it ended by an error, such as of a full disk."""
    store = RunStore(tmp_path / "store")
    settings = AutoSettings(epochs=2, short_epochs=1)
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": budget})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(auto._Searcher, "_int8_drop", _fail)
        with pytest.raises(OSError, match="no space"):
            search(wanted, settings, store=store, progress=Silent())
    kinds = {each.kind for each in store.steps()}
    assert {"import", "latency table", "importance", "pass:distill"} <= kinds
    store.prune(keep_runs=1)
    assert {each.kind for each in store.steps()} == kinds
    assert [each.status for each in store.runs()] == ["failed: OSError"]


def _fail(*_: Any) -> None:
    raise OSError("no space")


@pytest.mark.slow
def test_a_shape_whose_training_fails_is_left_out(
    recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, tried = auto._Searcher._train, []

    def fail_first(searcher: Any, found: Search, solution: Solution, epochs: int) -> Trial:
        tried.append((len(solution.kept), epochs))
        if len(tried) == 1:
            raise PassError("the loss became NaN", fix="a lower learning rate")
        return train(searcher, found, solution, epochs)

    class Telling(Silent):
        def warn(self, message: str) -> None:
            warnings.append(message)

    warnings: list[str] = []
    monkeypatch.setattr(auto._Searcher, "_train", fail_first)
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": budget})
    settings = AutoSettings(epochs=2, short_epochs=1)
    found = search(wanted, settings, store=store, progress=Telling())
    assert found.best is not None
    assert len(found.trials) == len(tried) - 1
    [told] = [each for each in warnings if "failed" in each]
    assert told.endswith("failed: the loss became NaN")
    monkeypatch.setattr(auto._Searcher, "_train", _never)
    with pytest.raises(PassError, match="nothing can be trained"):
        search(wanted, settings, store=store, progress=Silent())


def _never(*_: Any) -> None:
    raise PassError("nothing can be trained", fix="leave it")


@pytest.mark.slow
def test_a_training_is_expected_to_take_as_long_as_the_last_whether_it_was_found_or_made(
    recipe: Recipe, store: RunStore
) -> None:
    settings = AutoSettings(epochs=2, short_epochs=1)
    searcher = make_searcher(recipe, settings, store)
    assert searcher.search().best is not None
    pace = searcher.clock.pace
    assert pace.epoch_s > 0
    assert pace.rest_s > 0
    assert pace.label_s > 0
    again = make_searcher(recipe, settings, store)
    again.search()
    assert again.clock.pace == pace
    trial = again.search().trials[-1]
    assert again.manager.find(trial.passes) is not None
    assert again.manager.find((*trial.passes[:-1], trial.passes[-1].model_copy())) is not None
    longer = trial.passes[-1].model_copy(update={"epochs": 7})
    assert again.manager.find((*trial.passes[:-1], longer)) is None


@pytest.mark.slow
def test_a_training_that_is_there_needs_no_time_and_a_new_one_the_labels_as_well(
    recipe: Recipe, store: RunStore
) -> None:
    settings = AutoSettings(epochs=2, short_epochs=1)
    budget = Budget(max_accuracy_drop=100.0, max_latency_ms=1e3)
    wanted = recipe.model_copy(update={"budget": budget})
    first = search(wanted, settings, store=store, progress=Silent())
    searcher = make_searcher(wanted, AutoSettings(time_limit_s=500.0), store)
    searcher.clock.trained(Pace(epoch_s=1000.0))
    trial = first.trials[-1]
    found = Search(first.table, first.whole_ms)
    assert searcher._train(found, trial.solution, trial.epochs).passes == trial.passes
    searcher.clock = Clock(500.0)
    searcher.clock.trained(Pace(epoch_s=1.0, label_s=600.0))
    with pytest.raises(OutOfTimeError):
        searcher._train(found, trial.solution, 9)


@pytest.mark.parametrize(
    ("budget", "best"),
    [
        ({"max_accuracy_drop": 0.1}, None),
        ({"max_accuracy_drop": 1.0}, "short and fast"),  # in time for no other training of it
        ({"max_accuracy_drop": 1.3}, "faster"),
        ({}, "fastest"),
        ({"max_latency_ms": 5.0, "max_accuracy_drop": 0.1}, "whole"),
    ],
)
def test_the_best_is_the_fastest_that_holds_or_the_most_accurate(
    budget: dict[str, float], best: str | None
) -> None:
    trials = {
        "whole": (4.0, 24, 0.4),
        "short and fast": (2.0, 4, 1.0),
        "faster": (1.3, 24, 1.2),
        "as fast": (1.29, 4, 1.25),
        "fastest": (1.0, 4, 3.0),
    }
    found = Search(table=None, whole_ms=10.0)  # type: ignore[arg-type]
    made = {}
    for name, (latency_ms, epochs, drop) in trials.items():
        made[name] = Trial(Solution((), latency_ms, 0.0), epochs, drop, ())
        found.add(made[name], Budget(**budget))
    assert found.best is (None if best is None else made[best])
    assert found.trials == list(made.values())


def test_of_a_shape_the_longest_training_counts_and_of_shapes_the_nearest() -> None:
    """A few rows more that are right are luck, and less than what all answers tell."""
    budget = Budget(max_latency_ms=2.0)
    found = Search(table=None, whole_ms=10.0)  # type: ignore[arg-type]
    one, other = Solution((), 1.0, 0.0), Solution((), 1.1, 0.0)
    found.add(Trial(one, 4, -0.4, (), distance=0.09), budget)
    assert found.best is found.trials[0]
    found.add(Trial(other, 4, -0.6, (), distance=0.2), budget)
    assert found.best is found.trials[0]
    found.add(Trial(one, 24, 0.8, (), distance=0.1), budget)
    assert found.best is found.trials[2]
    found.add(Trial(other, 24, 1.0, (), distance=0.05), budget)
    assert found.best is found.trials[3]
    in_points = Search(table=None, whole_ms=10.0)  # type: ignore[arg-type]
    in_points.add(Trial(one, 24, 0.8, ()), budget)
    in_points.add(Trial(other, 24, 0.6, ()), budget)
    assert in_points.best is in_points.trials[1]


@pytest.mark.slow
def test_the_distance_of_a_model_is_its_divergence_from_the_untouched_one(
    recipe: Recipe, store: RunStore
) -> None:
    searcher = make_searcher(recipe, AutoSettings(), store)
    original = searcher.prepared.original.folder
    assert searcher._distance(original) == pytest.approx(0.0, abs=1e-12)
    found = searcher.search()
    trial = found.trials[0]
    model = load_model(searcher.manager.run(trial.passes)[-1].folder)
    split = searcher.prepared.splits().validation
    ours, theirs = (
        torch.tensor(answer(each, split).scores).log_softmax(dim=-1)
        for each in (model, load_model(original))
    )
    wanted = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    assert trial.distance == pytest.approx(float(wanted), rel=1e-4)
    assert trial.distance > 0


def found_with(
    int8_drop: float | None,
    *,
    budget: float | None = 1.0,
    variant: str = "int8",
    share: float = 1.0,
    targets: tuple[str, ...] = ("onnxruntime", "openvino"),
) -> tuple[Recipe, Recipe]:
    """A recipe that was searched for, and the one that was found."""
    wanted = Recipe(
        name="auto",
        model="model",
        task="text-classification",
        data=DataSpec(train="train.csv", test="test.csv"),
        targets=tuple(map(get, targets)),
        budget=Budget(max_accuracy_drop=budget),
    )
    passes = (TrimVocabulary(), Distill(epochs=24, hidden_weight=10.0))
    found = Search(
        table=SimpleNamespace(variant=variant),  # type: ignore[arg-type]
        whole_ms=10.0,
        int8_drop_points=int8_drop,
        share_of_epochs=share,
    )
    found.add(Trial(Solution((), 1.0, 0.0), 24, 0.4, passes), Budget(max_accuracy_drop=budget))
    return wanted, found_recipe(wanted, found)


def test_where_int8_loses_too_much_variants_keep_floats_or_train_in_it() -> None:
    _, found = found_with(1.2)
    mixed = found.chains["int8-mixed"]
    assert isinstance(mixed[-1], Quantize)
    assert mixed[-1].keep_float == KEEP_FLOAT
    assert mixed[:-1] == found.chains["int8"][:-1]
    smooth, weights = found.chains["int8-smooth"][-1], found.chains["int8-weights"][-1]
    assert smooth == int8_variants()["int8"][0].model_copy(update={"smooth_quant": 0.5})
    assert isinstance(weights, Quantize)
    assert (weights.method, weights.weight_bits) == ("weights", 8)
    assert found.chains["int8"] == (*found.passes, Export(), *int8_variants()["int8"])
    *before, aware, export, quantize = found.chains["int8-aware"]
    assert tuple(before) == found.passes
    assert isinstance(aware, Distill)
    assert isinstance(quantize, Quantize)
    assert export == Export()
    assert aware.hidden_weight == 10.0
    assert aware.epochs < 24
    rounding = aware.quantization_aware
    assert rounding is not None
    # It trains with the ranges with which it is quantized.
    ranges = {"calibration": "percentile", "percentile": rounding.percentile}
    assert quantize == int8_variants()["int8"][0].model_copy(update=ranges)
    assert (rounding.weight_bits, rounding.activations) == (7, quantize.activations)


@pytest.mark.parametrize(
    ("targets", "activations"),
    [(("tensorrt_rtx",), "int8"), (("tensorrt_rtx", "openvino"), "uint8")],
)
def test_what_is_for_tensorrt_alone_trains_with_symmetric_ranges(
    targets: tuple[str, ...], activations: str
) -> None:
    _, found = found_with(1.2, targets=targets)
    *_, aware, _, quantize = found.chains["int8-aware"]
    assert isinstance(aware, Distill)
    assert aware.quantization_aware is not None
    assert isinstance(quantize, Quantize)
    assert aware.quantization_aware.activations == quantize.activations == activations


def test_what_is_mended_is_the_int8_that_is_fastest() -> None:
    _, found = found_with(1.2, variant="int8-dynamic")
    static = {"int8-aware", "int8-mixed", "int8-smooth", "int8-dynamic-mixed"}
    assert not static & found.variants.keys()
    *_, aware, _, quantize = found.chains["int8-dynamic-aware"]
    assert isinstance(aware, Distill)
    assert aware.quantization_aware is not None
    assert aware.quantization_aware.method == "dynamic"
    assert (quantize,) == int8_variants()["int8-dynamic"]


@pytest.mark.parametrize(("share", "epochs"), [(1.0, 4), (0.5, 2), (0.01, 1)])
def test_of_many_rows_there_are_fewer_epochs_in_int8_too(share: float, epochs: int) -> None:
    _, found = found_with(1.2, share=share)
    *_, aware, _, _ = found.chains["int8-aware"]
    assert isinstance(aware, Distill)
    assert aware.epochs == epochs


@pytest.mark.parametrize(("drop", "budget"), [(1.0, 1.0), (None, 1.0), (50.0, None)])
def test_where_int8_holds_nothing_trains_in_it(drop: float | None, budget: float | None) -> None:
    _, found = found_with(drop, budget=budget)
    assert [each.name for each in found.passes] == ["trim_vocabulary", "distill", "export"]
    assert not {"int8-aware", "int8-mixed"} & set(found.variants)


@pytest.mark.parametrize(
    ("max_mb", "chosen"),
    [
        (None, (20_000, None, 8)),
        (12.8, (20_000, None, 8)),  # 7.68 MB of embeddings are 60%
        (12.7, (20_000, None, 4)),
        (6.1, (15_000, None, 4)),
        (3.2, (10_000, None, 4)),
        (3.01, (10_000, 9_406, 4)),  # 60% are 1.806 MB, a token takes 192 bytes
        (1.0, (10_000, 5_000, 4)),
    ],
)
def test_a_size_is_met_with_fewer_bits_and_then_with_fewer_tokens(
    max_mb: float | None, chosen: tuple[int, int | None, int]
) -> None:
    budget = Budget(max_size_mb=max_mb)
    assert taken(embeddings(BERT, budget, lambda trim: trim.keep_first)) == chosen
    few = embeddings(BERT, budget, lambda trim: min(trim.keep_first, 2_000))
    assert taken(few) == (20_000, None, 4 if max_mb == 1.0 else 8)


def taken(found: Embeddings) -> tuple[int, int | None, int]:
    return found.trim.keep_first, found.trim.max_tokens, found.bits


def test_the_tokens_of_the_training_data_count_to_the_size() -> None:
    """20,000 tokens and 8,000 others in 8 bits would be 83% of 13 MB."""
    found = embeddings(BERT, Budget(max_size_mb=13.0), lambda trim: trim.keep_first + 8_000)
    assert taken(found) == (20_000, None, 4)


def test_rare_tokens_go_where_the_training_data_has_nearly_all() -> None:
    """25,000 tokens in 4 bits would be 79% of 6.1 MB."""
    found = embeddings(BERT, Budget(max_size_mb=6.1), lambda trim: 25_000)
    assert taken(found) == (10_000, 19_062, 4)


def room_in(precision: str, max_mb: float | None, bits: Any = 8) -> Room | None:
    budget = Budget(max_size_mb=max_mb)
    return room(BERT, budget, lambda: 10_000, bits, precision=precision, multiple=32)


@pytest.mark.parametrize(("precision", "width"), [("int8", 1), ("fp16", 2), ("bf16", 4)])
def test_what_embeddings_and_head_leave_of_a_size_is_for_the_layers(
    precision: str, width: int
) -> None:
    assert room_in(precision, None) is None
    found = room_in(precision, 60.0)
    assert found is not None
    taken = sum(map(found.layer_bytes, BERT.layers))
    whole = width * dataclasses.replace(BERT, vocabulary_size=10_000).num_parameters
    # Both count every weight once; what is left is the graph and the tokenizer.
    assert 60e6 - found.max_bytes + taken == pytest.approx(whole, rel=0.1)
    assert 60e6 - found.max_bytes + taken > whole


def test_half_the_bits_of_the_embeddings_are_half_their_bytes() -> None:
    whole, half = room_in("int8", 12.0), room_in("int8", 12.0, 4)
    assert whole is not None
    assert half is not None
    assert half.max_bytes - whole.max_bytes == pytest.approx(10_000 * BERT.hidden_size / 2)


def test_a_size_below_the_smallest_shape_is_told_at_once() -> None:
    with pytest.raises(BudgetError, match="no shape of this model is that small") as error:
        room_in("int8", 4.0)
    assert "4 MB" in str(error.value.given)
    assert "in int8" in str(error.value.given)


@pytest.mark.slow
def test_a_size_bounds_the_bundle(recipe: Recipe, store: RunStore) -> None:
    free = search(recipe, AutoSettings(epochs=1, short_epochs=1), store=store, progress=Silent())
    assert free.best is not None
    searcher = make_searcher(recipe, AutoSettings(), store)
    whole = searcher.architecture
    rest = dataclasses.replace(whole, layers=()).num_parameters
    one = layer_bytes(whole, whole.layers[0], "fp32")
    budget = Budget(max_accuracy_drop=100.0, max_size_mb=(rest + 1.5e5 + 1.2 * one) / 1e6)
    wanted = recipe.model_copy(update={"budget": budget})
    found = search(wanted, AutoSettings(epochs=1, short_epochs=1), store=store, progress=Silent())
    assert found.trials
    for trial in found.trials:
        assert len(trial.solution.kept) == 1


def test_a_search_that_goes_on_takes_up_what_it_has_trained_whatever_time_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a new process the untouched model would have to label the rows again."""
    searcher = object.__new__(_Searcher)
    searcher.clock = Clock(1000.0)
    searcher.clock.trained(Pace(epoch_s=80.0, rest_s=20.0, label_s=420.0))
    searcher.memory = TeacherMemory()
    searcher.settings = AutoSettings(short_epochs=4)
    searcher.share_of_epochs = 1.0
    begun = {"second"}
    searcher.manager = SimpleNamespace(is_begun=lambda passes: passes[0] in begun)  # type: ignore[assignment]
    monkeypatch.setattr(searcher, "_passes", lambda each, epochs: (each,))
    tried: list[Any] = []

    def train(found: object, each: Any, epochs: int) -> Any:
        tried.append(each)
        return SimpleNamespace(loss=len(tried))

    monkeypatch.setattr(searcher, "_try", train)
    for wanted in (["first", "second"], ["first"]):
        searcher._choose(None, ["first", "second"], 700.0)  # type: ignore[arg-type, list-item]
        assert tried == wanted
        tried.clear()
        begun.clear()


def test_every_int8_variant_has_the_embeddings_that_were_chosen() -> None:
    wanted, _ = found_with(None)
    searched = Search(table=None, whole_ms=10.0, table_bits=4)  # type: ignore[arg-type]
    searched.add(Trial(Solution((), 1.0, 0.0), 24, 0.4, wanted.passes), Budget())
    made = found_recipe(wanted, searched).variants
    ends = {name: passes[-1] for name, passes in made.items() if name.startswith("int8")}
    assert [each.table_bits for each in ends.values() if isinstance(each, Quantize)] == [4, 4]


def test_a_precision_that_no_target_takes_is_left_out() -> None:
    wanted, found = found_with(None)
    assert "int8-dynamic" in found.variants
    searched = Search(table=None, whole_ms=10.0)  # type: ignore[arg-type]
    searched.add(Trial(Solution((), 1.0, 0.0), 24, 0.4, wanted.passes), Budget())
    alone = wanted.model_copy(update={"targets": (get("openvino"),)})
    assert "int8-dynamic" not in found_recipe(alone, searched).variants


@pytest.mark.slow
def test_a_recipe_with_a_training_in_int8_runs(recipe: Recipe, store: RunStore) -> None:
    searcher = make_searcher(recipe, AutoSettings(epochs=1, short_epochs=1), store)
    found = searcher.search()
    assert found.best is not None
    assert (found.int8_drop_points is None) == (not found.table.variant.startswith("int8"))
    static = found.table.model_copy(update={"variant": "int8"})
    lossy = dataclasses.replace(found, int8_drop_points=100.1, table=static)
    lost = searcher._int8_drop(lossy, found.best)
    assert lost is not None
    assert abs(lost) < 100
    report = run(found_recipe(recipe, lossy), store=store)
    measured = {row.variant: row for row in report.rows if row.status == "measured"}
    for variant in ("int8-aware", "int8-mixed", "int8-smooth"):
        assert measured[variant].precision == "int8"
    assert measured["int8-weights"].precision == "int8-weights"
    assert measured["int8-aware"].size_bytes == pytest.approx(measured["int8"].size_bytes, rel=0.01)


def test_without_a_target_that_runs_here_no_latency_can_be_measured(
    recipe: Recipe, store: RunStore
) -> None:
    wanted = recipe.model_copy(update={"targets": (get("pytorch"),)})
    with pytest.raises(TargetError, match="none of the targets runs here"):
        search(wanted, AutoSettings(), store=store, progress=Silent())


@pytest.mark.slow
def test_the_latency_table_is_of_the_precision_that_is_fastest(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, fastest = [], "int8"

    def quietest(prober: Prober, bundles: Any, target: Any) -> list[SimpleNamespace]:
        compared.append(list(bundles))
        interval = SimpleNamespace(low=1.0, high=1.0)
        noise = SimpleNamespace(verdict="quiet")
        return [
            SimpleNamespace(
                median_ms=1.0 if name == fastest else 2.0 + number, interval=interval, noise=noise
            )
            for number, name in enumerate(bundles)
        ]

    monkeypatch.setattr(Prober, "_quietest", quietest)
    wanted = recipe.model_copy(update={"targets": (get("onnxruntime"),)})
    searcher = make_searcher(wanted, AutoSettings(time_limit_s=0), RunStore(tmp_path / "store"))
    found = searcher.search()
    assert found.table.variant == fastest
    assert found.table.precision == fastest
    assert compared[0] == ["fp32", "int8", "int8-dynamic"]
    assert compared[1] == [f"probe-{number}" for number in range(len(compared[1]))]
    assert len(found.table.probes) == len(compared[1])


def test_the_most_accurate_of_those_that_hold_is_taken_also_where_a_latency_is_asked_for() -> None:
    budget = Budget(max_latency_ms=2.0, max_accuracy_drop=1.0)
    found = Search(table=None, whole_ms=10.0)  # type: ignore[arg-type]
    found.add(Trial(Solution((), 1.0, 0.0), 24, 1.4, (), distance=0.05), budget)
    assert found.best is found.trials[0]  # there is no other
    found.add(Trial(Solution((), 1.1, 0.0), 24, 0.2, (), distance=0.06), budget)
    assert found.best is found.trials[1]


@pytest.mark.slow
def test_where_mending_int8_fails_the_shape_is_run_without_that(
    recipe: Recipe, store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = AutoSettings(epochs=1, short_epochs=1)
    found = search(recipe, settings, store=store, progress=Silent())
    static = found.table.model_copy(update={"variant": "int8", "precision": "int8"})
    lossy = dataclasses.replace(found, int8_drop_points=100.1, table=static)
    quantize = Quantize.run

    def fail(self: Quantize, *given: Any) -> Any:
        if self.smooth_quant is not None:
            raise PassError("there is nothing to smooth", fix="leave it out")
        return quantize(self, *given)

    monkeypatch.setattr(Quantize, "run", fail)
    monkeypatch.setattr(Quantize, "version", 0)  # what other tests smoothed is not taken
    monkeypatch.setattr("compressor.search.auto.search", lambda *_, **__: lossy)
    report = _search_and_run(recipe, settings, store, tmp_path)
    assert "the variant int8-smooth failed" in " ".join(capsys.readouterr().out.split())
    variants = set(load_recipe(tmp_path / "recipe.yaml").variants)
    assert variants == {row.variant for row in report.rows if row.kind == "candidate"}
    assert {"int8", "int8-aware", "int8-mixed", "int8-weights"} < variants
    assert "int8-smooth" not in variants
    assert json.loads((tmp_path / "search.json").read_text())["int8_drop_points"] == 100.1
