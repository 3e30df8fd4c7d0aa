"""Time small models of every structure on a target: what the latency table is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compressor.architecture import Architecture
from compressor.data import Splits
from compressor.lowering import lower
from compressor.manager import PassManager
from compressor.passes import Pass
from compressor.passes.export import Export
from compressor.passes.prune import Prune
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.progress import Progress, Silent
from compressor.pruning.planning import KeptLayer
from compressor.search.latency import LatencyTable, Probe, fit_table, probe_shapes
from compressor.store import RunStore, StoredStep
from targets.base import Target
from targets.benchmark import BenchmarkCase, BenchmarkSettings, Failure, benchmark
from targets.environment import Environment, cpu_features, library_versions
from targets.errors import TargetError
from targets.measurement import Measurement
from targets.networks import network_source
from targets.shapes import LayerShape
from targets.wording import plural

__all__ = ["Prober"]

VERSION = 5
NUM_ROWS = 64
"""Of each split: the probes learn nothing, and their values do not matter."""
NUM_LAYERS = 2
ATTEMPTS = 4
"""How often the probes are timed at most where the machine is busy: it takes seconds, and every
latency that is predicted depends on it."""


@dataclass(frozen=True)
class Prober:
    """Measures latency tables.

    Attributes:
        store: Where a table is kept.
        original: The untouched model.
        splits: Reads the data.
        settings: How to measure; the first shape is the one that counts.
        multiple: Widths are multiples of it.
        progress: Is told what happens.
    """

    store: RunStore
    original: StoredStep
    splits: Callable[[], Splits]
    settings: BenchmarkSettings
    multiple: int
    progress: Progress

    def table(
        self, architecture: Architecture, target: Target, variants: Mapping[str, Sequence[Pass]]
    ) -> tuple[LatencyTable, StoredStep]:
        """The table of a target at the precision that is fastest there, and the step that made it.

        Each probe is the untouched model cut to a shape, exported, quantized and lowered as any
        other; all are timed side by side. Which precision is the fastest, one of them tells.

        Args:
            architecture: Of the untouched model.
            target: Runs here.
            variants: Name -> passes that bring an exported model to a precision of the target.

        Raises:
            TargetError: A probe cannot be built or run.
        """
        shape = self.settings.shapes[0]
        # Of int8, which has a byte a weight, and is what is fastest on most machines.
        target = target.for_size(architecture.num_parameters)

        # A table is of one shape, and of no text that is written.
        timed = {
            key: each for key, each in self.settings.of_latency().items() if key != "batch_sizes"
        }

        def make(files: Path, work: Path) -> dict[str, Any]:
            variant, probes, noisy = self._probes(architecture, target, variants, work)
            passes = variants[variant]
            found = fit_table(
                probes,
                target=target.label,
                variant=variant,
                precision=passes[-1].precision or "fp32" if passes else "fp32",
                batch_size=shape.batch_size,
                sequence_length=self.settings.sequence_length,
                threads=self.settings.threads,
            )
            return {"table": found.model_dump(mode="json"), "noisy": noisy}

        self.progress.start(f"measure what each structure costs on {target.label}")
        step = self.store.step(
            "latency table",
            {
                "original": self.original.content_hash,
                "target": target.name,
                "settings": target.settings(),
                "versions": target.versions()
                | library_versions(("torch", "onnx"))
                | network_source(self.original.folder),
                "target_version": target.version,
                "cpu": cpu_features(),
                "variants": {
                    name: [[each.name, each.version, each.settings()] for each in passes]
                    for name, passes in variants.items()
                },
                "benchmark": timed,
                "batch_size": shape.batch_size,
                "machine": Environment.here().machine,
                "version": VERSION,
            },
            make,
        )
        table = LatencyTable.model_validate(step.record.facts["table"])
        line = f"{len(table.probes)} models in {table.variant}, fitted to within {table.error:.0%}"
        self.progress.finish(line, cached=step.cached)
        if step.record.facts["noisy"]:
            compared = len(variants) if len(variants) > 1 else 0
            made = plural(len(table.probes) + compared, "measurement")
            self.progress.warn(
                f"{step.record.facts['noisy']} of {made} were made while the machine was busy: "
                "predicted latencies may be off. To measure again: "
                f"{self.store.remove_command(step.record.key)}"
            )
        return table, step

    def _probes(
        self,
        architecture: Architecture,
        target: Target,
        variants: Mapping[str, Sequence[Pass]],
        work: Path,
    ) -> tuple[str, list[Probe], int]:
        """The fastest variant, its probes, and how many of them were noisy."""
        largest = _largest(architecture.layers)
        sizes = [architecture.layers[number] for number in largest]
        whole = probe_shapes(
            max(each.num_heads for each in sizes),
            max(each.ffn_width for each in sizes),
            num_layers=len(largest),
            multiple=self.multiple,
        )
        shapes = [_within(layers, sizes) for layers in whole]
        store = RunStore(work / "probes")  # outlives an interruption, not the table
        few = _some(self.splits())
        manager = PassManager(
            store=store,
            original=self.original,
            splits=lambda: few,
            data_hash=f"the first {NUM_ROWS} rows",
            seed=0,
            width_multiple=self.multiple,
            progress=Silent(),
        )
        reads_tokens = bool(architecture.vocabulary_size)
        trim: tuple[Pass, ...] = (TrimVocabulary(keep_first=0),) if reads_tokens else ()
        number_built = itertools.count(1)
        total = len(shapes) + len(variants)

        def build(layers: Sequence[LayerShape], variant: str) -> BenchmarkCase:
            number = next(number_built)
            self.progress.update(0.8 * number / total, f"build model {number}")
            chain = (*trim, _cut(largest, layers), Export(), *variants[variant])
            steps = manager.run(chain)
            found = lower(
                f"probe-{number}",
                "candidate",
                target,
                [self.original, *steps],
                store=store,
                hand_over=work / "hand_over",
            )
            if found.bundle is None or not found.runs_here:
                raise TargetError(
                    "the target cannot run a model of this form here",
                    where=target.label,
                    given=found.reason,
                    fix="search on another target, or on a machine that has this one",
                )
            return BenchmarkCase(found.bundle.folder)

        fastest, timed_before = next(iter(variants)), 0
        if len(variants) > 1:
            middle = _within(whole[0] * len(largest), sizes)
            tried = {variant: build(middle, variant) for variant in variants}
            found = self._quietest(tried, target)
            timed_before = _num_noisy(found)
            _, fastest = min(zip((each.median_ms for each in found), tried, strict=True))
        bundles = {f"probe-{number}": build(each, fastest) for number, each in enumerate(shapes)}
        timed = self._quietest(bundles, target)
        probes = [
            Probe(
                layers=layers,
                median_ms=each.median_ms,
                low_ms=each.interval.low,
                high_ms=each.interval.high,
            )
            for layers, each in zip(shapes, timed, strict=True)
        ]
        return fastest, probes, timed_before + _num_noisy(timed)

    def _quietest(
        self, bundles: Mapping[str, BenchmarkCase], target: Target
    ) -> Sequence[Measurement]:
        """Each bundle's time where the fewest were noisy, of a few attempts side by side.

        Of attempts that were as quiet the fastest counts: what else a machine does only adds time.
        """
        attempts: list[Sequence[Measurement]] = []
        while len(attempts) < ATTEMPTS and not (attempts and _is_calm(attempts[-1])):
            attempts.append(self._timed(bundles, target))
        return min(
            attempts,
            key=lambda timed: (_num_noisy(timed), sum(each.median_ms for each in timed)),
        )

    def _timed(self, bundles: Mapping[str, BenchmarkCase], target: Target) -> Sequence[Measurement]:
        shape = self.settings.shapes[0]
        with self.store.measuring():
            results = benchmark(
                bundles,
                self.settings,
                lambda done, total, line: self.progress.update(0.8 + 0.2 * done / total, line),
                shapes=[shape],
            )
        timed = []
        for result in results.values():
            measured = result.at(shape)
            if measured is None or isinstance(measured, Failure):
                raise TargetError(
                    "a model of the latency table could not be timed",
                    where=target.label,
                    given="no measurement" if measured is None else measured.error.what,
                    fix="free memory, and run again: the models are kept",
                )
            timed.append(measured)
        return timed


def _num_noisy(timed: Sequence[Measurement]) -> int:
    return sum(each.noise.verdict == "noisy" for each in timed)


def _is_calm(timed: Sequence[Measurement]) -> bool:
    """Whether nothing would be gained by another attempt."""
    return not any(each.noise.verdict == "noisy" or each.is_slowed for each in timed)


def _largest(layers: Sequence[LayerShape]) -> list[int]:
    """Which layers a probe is cut from: of a model that was compressed before they differ.

    The one with the widest feed-forward, that with the most heads, and then by size.
    """
    numbers = range(len(layers))
    most = max(numbers, key=lambda each: (layers[each].num_heads, layers[each].ffn_width))
    widest, *others = sorted(
        numbers, key=lambda each: (-layers[each].ffn_width, -layers[each].num_heads)
    )
    chosen = list(dict.fromkeys([widest, most, *others]))
    return sorted(chosen[:NUM_LAYERS])


def _within(layers: Sequence[LayerShape], sizes: Sequence[LayerShape]) -> tuple[LayerShape, ...]:
    """Layers that are no larger than those that they are cut from."""
    return tuple(
        LayerShape(min(layer.num_heads, size.num_heads), min(layer.ffn_width, size.ffn_width))
        for layer, size in zip(layers, sizes, strict=False)
    )


def _cut(numbers: Sequence[int], layers: Sequence[LayerShape]) -> Prune:
    """A pass that leaves some layers with these sizes; which units stay does not matter."""
    return Prune(
        importance="random",
        shape=tuple(
            KeptLayer(layer=number, heads=each.num_heads, ffn=each.ffn_width)
            for number, each in zip(numbers, layers, strict=False)
        ),
    )


def _some(splits: Splits) -> Splits:
    def head(split: Any) -> Any:
        return split.take(range(min(NUM_ROWS, len(split))))

    return replace(
        splits,
        train=head(splits.train),
        validation=head(splits.validation),
        test=head(splits.test),
    )
