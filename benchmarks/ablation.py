"""What each ingredient of the recipe ``balanced`` gives: leave one out, or take one alone.

Accuracy of the torch model on the test data, over several seeds. Every case begins with the same
checkpoint and the same trimmed vocabulary; which units stay is decided anew for each seed.
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

from compressor.cli.progress import ConsoleProgress
from compressor.model import TorchModel
from compressor.passes import Pass
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.planning import validate_recipe
from compressor.preparation import prepare
from compressor.progress import Silent
from compressor.recipe import load_recipe
from compressor.store import RunStore, default_store
from targets.scoring import Z_95

HERE = Path(__file__).parent
RESULT = "ablation_trec_6.json"


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


def cases() -> tuple[Case, ...]:
    """The recipe as it is shipped, and what is left of it without its ingredients."""
    _, prune, distill, *_ = load_recipe("balanced").passes
    assert isinstance(prune, Prune)
    assert isinstance(distill, Distill)
    alone = distill.model_copy(update={"num_layers": None})
    drop = DropLayers(num_layers=distill.num_layers)
    blind = prune.model_copy(update={"importance": "random"})
    labels = Finetune(epochs=distill.epochs)

    def without(**changes: Any) -> Distill:
        return distill.model_copy(update=changes)

    both = "3 layers, quarter width"
    return (
        Case("trained on labels alone", both, (prune, drop, labels)),
        Case("no hidden states", both, (prune, without(hidden_weight=0.0))),
        Case("no more sentences", both, (prune, without(augmentation=0.0))),
        Case("tokens replaced, no mixed spans", both, (prune, without(augmentation_mixup=0.0))),
        Case("units chosen at random", both, (blind, distill)),
        Case("the recipe", both, (prune, distill)),
        Case("only layers go", "3 layers, whole width", (distill,)),
        Case("only heads and neurons go", "6 layers, quarter width", (prune, alone)),
        Case("not trained at all", "6 layers, quarter width", (prune,)),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Train every case with every seed; what is in the store already is taken from there."""
    parser = argparse.ArgumentParser(prog="scripts/ablate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="fine-tuned on TREC-6")
    parser.add_argument("--data", type=Path, required=True, help="what fetch_assets brought")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args(arguments)
    document: dict[str, Any] = {"seeds": options.seeds, "untouched": "", "cases": []}
    with ConsoleProgress() as progress:
        for case in cases():
            entry: dict[str, Any] = {"name": case.name, "shape": case.shape}
            entry |= {"right": {}, "train_s": {}}
            document["cases"].append(entry)
            for seed in options.seeds:
                progress.start(f"{case.name}, seed {seed}")
                before, after, seconds = _run(case, seed, options)
                document["untouched"] = before
                entry["right"][str(seed)], entry["train_s"][str(seed)] = after, seconds
                lost = 100 * (before.count("1") - after.count("1")) / len(before)
                progress.finish(f"{lost:.1f} points lost", cached=False)
            path = options.results / RESULT
            path.write_text(json.dumps(document) + "\n", encoding="utf-8")
    print("\n".join(table(document)))
    return 0


def _run(case: Case, seed: int, options: argparse.Namespace) -> tuple[str, str, float]:
    """Which test rows the untouched and the small model get right, and the seconds of training."""
    splits = {split: options.data / f"{split}.csv" for split in ("train", "validation", "test")}
    named = {f"data.{name}": str(path.absolute()) for name, path in splits.items()}
    shipped = load_recipe("balanced", values=named)
    trim, *_ = shipped.passes
    recipe = shipped.model_copy(
        update={
            "model": options.checkpoint.absolute(),
            "seed": seed,
            "passes": (trim, *case.passes, shipped.passes[-1]),
        }
    )
    store = RunStore(options.store or default_store())
    prepared = prepare(recipe, validate_recipe(recipe), store=store, progress=Silent())
    steps = prepared.manager().run((trim, *case.passes))
    seconds = sum(step.record.facts["metrics"].get("train_s", 0.0) for step in steps)
    test = prepared.splits().test
    before, after = (
        _right(TorchModel.load(step.folder), test) for step in (prepared.original, steps[-1])
    )
    return before, after, seconds


def _right(model: TorchModel, split: Any) -> str:
    from compressor.manager import predict_classes

    return "".join("1" if hit else "0" for hit in predict_classes(model, split) == split.labels)


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
