"""What each ingredient gives: leave one out of the recipe ``balanced``, or take one alone.

Accuracy on the test data, over several seeds: of the torch model, or of its int8 form on ONNX
Runtime where a case ends with ``quantize``. Every case begins with the same checkpoint and the same
trimmed vocabulary; which units stay is decided anew for each seed. On texts that are longer than
the model reads, and with many of them to judge by, less is left out: what matters there alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.checkpoints import MAX_LENGTH, MODEL, fetch, fine_tune
from compressor.answering import answer
from compressor.cli.progress import ConsoleProgress
from compressor.data import Split
from compressor.model import Model, TorchModel, load_model
from compressor.passes import Pass
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.planning import validate_recipe
from compressor.preparation import prepare
from compressor.progress import Silent
from compressor.recipe import load_recipe
from compressor.store import RunStore, default_store
from compressor.training.settings import DistillSettings, QuantizationAware
from targets.scoring import Z_95

SHORT, LONG = "trec-6", "20-newsgroups"
SMALL = "3 layers, quarter width"
EPOCHS, AWARE_EPOCHS = 16, 4
NEIGHBOURS = 15
"""Of each token, as many as TinyBERT has."""
MULTIPLE = 32
"""Widths that are solved for are multiples of it."""


@dataclass(frozen=True)
class Case:
    """One way to make a small model.

    Attributes:
        name: What is done, in words.
        shape: What it leaves.
        passes: After the vocabulary was trimmed.
    """

    name: str
    shape: str
    passes: tuple[Pass, ...]


def long_cases() -> tuple[Case, ...]:
    """What long texts alone show."""
    prune, distill, _ = _shipped()
    plain = distill.model_copy(update={"augmentation_windows": 0.0})
    return (
        Case("the recipe", SMALL, (prune, distill)),
        Case("no other stretches of long texts", SMALL, (prune, plain)),
    )


def more_cases() -> tuple[Case, ...]:
    """What the recipe could do besides, each alone; all train for as many epochs."""
    prune, distill, _ = _shipped()
    recovery = DistillSettings(
        epochs=EPOCHS // 4,
        dropout=distill.dropout,
        hidden_weight=distill.hidden_weight,
        temperature=distill.temperature,
    )
    in_steps = prune.model_copy(update={"steps": 2, "recovery": recovery})

    def also(**changes: Any) -> Distill:
        return distill.model_copy(update=changes)

    neighbours = {"augmentation_mixup": 0.0, "augmentation_neighbours": NEIGHBOURS}
    return (
        Case("the shipped recipe", SMALL, (prune, distill)),
        Case("pruned in two steps", SMALL, (in_steps, also(epochs=EPOCHS // 2))),
        Case("relations of attention too", SMALL, (prune, also(relation_weight=1.0))),
        Case(
            "relations instead of hidden states",
            SMALL,
            (prune, also(relation_weight=1.0, hidden_weight=0.0)),
        ),
        Case("tokens replaced by frequency alone", SMALL, (prune, also(augmentation_mixup=0.0))),
        Case("tokens replaced by neighbours", SMALL, (prune, also(**neighbours))),
    )


def solved_cases(found: Path) -> tuple[Case, Case]:
    """The shape of a recipe of ``compressor auto``, trained as ``balanced`` trains its own, and one
    of the same layers with as many heads and neurons, which are spread evenly."""
    _, distill, _ = _shipped()
    match load_recipe(found).passes:
        case [_, Prune() as shaped, Distill() as trained, *_]:
            pass
        case _:
            sys.exit(f"error: {found} is no recipe that auto found: its passes are other ones")
    update = {"num_layers": None, "layer_map": trained.layer_map}
    kept = shaped.shape or ()
    heads = _spread(sum(each.heads for each in kept), len(kept))
    ffn = _spread(sum(each.ffn for each in kept), len(kept), MULTIPLE)
    even = tuple(
        each.model_copy(update={"heads": some, "ffn": width})
        for each, some, width in zip(kept, heads, ffn, strict=True)
    )
    trained = distill.model_copy(update=update)
    layers = f"{len(kept)} layers"
    return (
        Case("a shape for the latency", f"{layers}, as solved for", (shaped, trained)),
        Case(
            "as many heads and neurons, spread evenly",
            f"{layers} alike",
            (shaped.model_copy(update={"shape": even}), trained),
        ),
    )


def _spread(total: int, count: int, multiple: int = 1) -> list[int]:
    """A number in parts that differ by no more than one multiple."""
    units = total // multiple
    return [multiple * (units // count + (place < units % count)) for place in range(count)]


def _shipped() -> tuple[Prune, Distill, Export]:
    """The passes of the recipe, trained for a shorter time: what gives little shows sooner."""
    _, prune, distill, export = load_recipe("balanced").passes
    assert isinstance(prune, Prune)
    assert isinstance(distill, Distill)
    assert isinstance(export, Export)
    return prune, distill.model_copy(update={"epochs": EPOCHS}), export


def cases() -> tuple[Case, ...]:
    """The recipe, what is left of it without its ingredients, and what the fit of `prune` adds.

    The fit, which the recipe ends with, comes last: what it gives is seen where little else is.
    """
    second, distill, export = _shipped()
    fitted = second.model_copy(update={"importance": "taylor"})
    prune = fitted.model_copy(update={"refit": False})
    alone = distill.model_copy(update={"num_layers": None})
    drop = DropLayers(num_layers=distill.num_layers)
    blind = prune.model_copy(update={"importance": "random"})
    labels = Finetune(epochs=distill.epochs)

    def without(**changes: Any) -> Distill:
        return distill.model_copy(update=changes)

    def aware(static: Quantize) -> Distill:
        rounding = QuantizationAware(percentile=static.percentile, weight_bits=static.weight_bits)
        return alone.model_copy(
            update={
                "epochs": AWARE_EPOCHS,
                "learning_rate": distill.learning_rate / 5,
                "quantization_aware": rounding,
            }
        )

    int8 = Quantize(method="static", weight_bits=7, calibration="percentile")
    coarse = int8.model_copy(update={"percentile": 99})
    small, whole = SMALL, "6 layers, whole width"
    return (
        Case("the recipe", small, (prune, distill)),
        Case("trained on labels alone", small, (prune, drop, labels)),
        Case("no hidden states", small, (prune, without(hidden_weight=0.0))),
        Case("no more sentences", small, (prune, without(augmentation=0.0))),
        Case("tokens replaced, no mixed spans", small, (prune, without(augmentation_mixup=0.0))),
        Case("units chosen at random", small, (blind, distill)),
        Case("only layers go", "3 layers, whole width", (distill,)),
        Case("only heads and neurons go", "6 layers, quarter width", (prune, alone)),
        Case("not trained at all", "6 layers, quarter width", (prune,)),
        Case("not trained, fitted", "6 layers, quarter width", (fitted,)),
        Case("not trained, fitted, second-order", "6 layers, quarter width", (second,)),
        Case("the recipe, fitted", small, (fitted, distill)),
        Case("the recipe, fitted, second-order", small, (second, distill)),
        Case("only int8", whole, (export, int8)),
        Case("the recipe, int8", small, (prune, distill, export, int8)),
        Case(
            "the recipe, more training, int8",
            small,
            (prune, distill, aware(int8).model_copy(update={"quantization_aware": None}), export,
             int8),
        ),
        Case(
            "the recipe, quantization-aware training, int8",
            small,
            (prune, distill, aware(int8), export, int8),
        ),
        Case("the recipe, int8 that clips 1%", small, (prune, distill, export, coarse)),
        Case(
            "the recipe, quantization-aware training, int8 that clips 1%",
            small,
            (prune, distill, aware(coarse), export, coarse),
        ),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every case with every seed; what is in the store already is taken from there."""
    parser = argparse.ArgumentParser(prog="scripts/ablate", description=__doc__)
    parser.add_argument("task", nargs="?", choices=(SHORT, LONG), default=SHORT)
    parser.add_argument(
        "--checkpoint", type=Path, help="one fine-tuned on the task, instead of doing it again"
    )
    parser.add_argument("--output", type=Path, default=Path("demo-output/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--found", type=Path, help="a recipe of auto, for its shape")
    parser.add_argument(
        "--more", action="store_true", help="what the recipe could do besides, not what it does"
    )
    options = parser.parse_args(arguments)
    if options.more and options.task == LONG:
        parser.error(f"--more is for {SHORT}")
    chosen = more_cases() if options.more else cases() if options.task == SHORT else long_cases()
    if options.found is not None:
        chosen = (*chosen, *solved_cases(options.found))
    assets = fetch(MODEL, options.task)
    if options.checkpoint is None:
        folder = options.output / options.task / "checkpoint"
        options.checkpoint = fine_tune(options.task, assets, folder)
    options.data = assets / options.task
    entries: list[dict[str, Any]] = [
        {"name": case.name, "shape": case.shape, "right": {}, "train_s": {}} for case in chosen
    ]
    document: dict[str, Any] = {"untouched": "", "cases": entries}
    with ConsoleProgress() as progress:
        for seed in options.seeds:
            for case, entry in zip(chosen, entries, strict=True):
                progress.start(f"{case.name}, seed {seed}")
                before, after, seconds = _run(case, seed, options)
                document["untouched"] = before
                entry["right"][str(seed)], entry["train_s"][str(seed)] = after, seconds
                lost = 100 * (before.count("1") - after.count("1")) / len(before)
                progress.finish(f"{lost:.1f} points lost", cached=False)
            # Every seed is whole before it counts.
            kind = "_more" if options.more else ""
            path = options.output / f"ablation_{options.task.replace('-', '_')}{kind}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print("\n".join(table(document)))
    return 0


def _run(case: Case, seed: int, options: argparse.Namespace) -> tuple[str, str, float]:
    """Which test rows the untouched and the small model get right, and the seconds of training."""
    splits = {split: options.data / f"{split}.csv" for split in ("train", "validation", "test")}
    named: dict[str, Any] = {f"data.{name}": str(path.absolute()) for name, path in splits.items()}
    if options.task == LONG:
        named["data.max_length"] = MAX_LENGTH
    shipped = load_recipe("balanced", values=named)
    trim, *_, export = shipped.passes
    chain = (trim, *case.passes)
    ends = chain if export in chain else (*chain, export)
    recipe = shipped.model_copy(
        update={
            "model": options.checkpoint.absolute(),
            "seed": seed,
            "passes": ends,
            "variants": {},
        }
    )
    store = RunStore(options.store or default_store())
    prepared = prepare(recipe, validate_recipe(recipe), store=store, progress=Silent())
    steps = prepared.manager().run(chain)
    seconds = sum(step.record.facts["metrics"].get("train_s", 0.0) for step in steps)
    test = prepared.splits().test
    before = _right(TorchModel.load(prepared.original.folder), test)
    return before, _right(load_model(steps[-1].folder), test), seconds


def _right(model: Model, split: Split) -> str:
    return "".join("1" if hit else "0" for hit in answer(model, split).right)


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Points lost on the test data by every case, in Markdown."""
    before = _bits(document["untouched"])
    yield "| what | shape | lost, points (95%) | by seed | training, s |"
    yield "|---|---|---|---|---|"
    for case in document["cases"]:
        runs = np.stack([_bits(each) for each in case["right"].values()])
        lost = before - runs.mean(axis=0)  # (rows,): of each question, over the seeds
        mean, spread = 100 * lost.mean(), 100 * Z_95 * lost.std(ddof=1) / np.sqrt(len(lost))
        by_seed = ", ".join(f"{100 * (before - run).mean():.1f}" for run in runs)
        seconds = np.mean(list(case["train_s"].values()))
        yield (
            f"| {case['name']} | {case['shape']} "
            f"| {mean:.1f} ({mean - spread:.1f} to {mean + spread:.1f}) | {by_seed} "
            f"| {seconds:.0f} |"
        )


def _bits(text: str) -> NDArray[np.float64]:
    return np.array([float(each) for each in text])


if __name__ == "__main__":
    sys.exit(main())
