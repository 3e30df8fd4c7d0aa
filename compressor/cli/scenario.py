"""What ``compressor bench --scenario`` does, prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import typer
from pydantic import ValidationError
from rich.table import Table

from compressor.cli.files import check_file, write_text
from compressor.cli.options import flags_of, is_given
from compressor.cli.progress import ConsoleProgress, console
from compressor.errors import BudgetError
from targets.bundle import Bundle
from targets.environment import Environment
from targets.errors import TargetError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import bundle_feeds, usual_length
from targets.load_result import LoadResult
from targets.load_scenario import SCENARIOS, LoadSettings
from targets.load_search import RateSearch, find_rate
from targets.loadgen import import_loadgen
from targets.scratch import ScratchFolder
from targets.worker_client import Worker

__all__ = ["bench_scenario", "read_settings"]

SYNTHETIC_TEXTS = 64

ALWAYS = {"bundles", "scenario", "threads", "sequence_length", "output", "duration"}
"""Parameters of the command that mean something to every scenario."""
FIELDS = {
    "duration": "duration_s",
    "max_batch": "max_batch",
    "p99_ms": "p99_ms",
    "qps": "qps",
    "samples_per_query": "samples_per_query",
}
"""Parameters of the command that only a scenario has -> fields of `LoadSettings`."""


def read_settings(context: typer.Context) -> LoadSettings | None:
    """The scenario that the command line asks for, or None.

    Raises:
        BadParameter: An option has no effect, is missing or is out of range; names it.
    """
    flags = flags_of(context)
    given = [name for name in flags if is_given(context, name)]
    name = context.params["scenario"]
    if name is None:
        stray = [flags[each] for each in given if each in FIELDS]
        if stray:
            raise typer.BadParameter(f"{stray[0]} needs --scenario")
        return None
    rules = SCENARIOS.get(name)
    if rules is None:
        raise typer.BadParameter(f"there is no scenario {name!r}: use {', '.join(SCENARIOS)}")
    for each in given:
        if each not in ALWAYS and FIELDS.get(each) not in rules.options:
            raise typer.BadParameter(f"{flags[each]} has no effect with --scenario {name}")
    for each, known in FIELDS.items():
        if known in rules.required and each not in given:
            raise typer.BadParameter(f"--scenario {name} needs {flags[each]}")
    usual = {"max_batch": rules.max_batch, "samples_per_query": rules.samples_per_query}
    asked = {known: context.params[each] for each, known in FIELDS.items() if each in given}
    try:
        return LoadSettings(scenario=name, **(usual | asked))
    except ValidationError as error:
        first = error.errors()[0]
        flag = next(flags[each] for each, known in FIELDS.items() if known == first["loc"][0])
        raise typer.BadParameter(f"{flag} {first['input']}: {first['msg']}") from error


def bench_scenario(
    bundles: Sequence[Path],
    settings: LoadSettings,
    *,
    threads: int,
    sequence_length: int | None,
    output: Path | None,
) -> None:
    """Run a load scenario on a bundle, print what came out, and write it where asked for.

    A server without a rate is asked for the highest one that it holds.

    Args:
        bundles: One bundle.
        settings: The scenario.
        threads: CPU threads of the target.
        sequence_length: Tokens of synthetic texts; None for the bundle's test data, if it has any.
        output: File for the results; LoadGen's own logs are kept in a folder beside it.

    Raises:
        BudgetError: A latency bound is not held.
        TargetError: LoadGen calls a run without a bound not valid.
    """
    import_loadgen()
    check_file(output)
    if len(bundles) != 1:
        raise typer.BadParameter(f"a scenario runs on one bundle; {len(bundles)} were given")
    bundle = Bundle.open(bundles[0])
    samples = _Samples.of(bundle, sequence_length)
    with ExitStack() as stack:
        folder = stack.enter_context(ScratchFolder("load")).path
        samples.pack.save(folder / "pack.safetensors")
        runs = _Runs(
            worker=stack.enter_context(Worker(threads=threads)),
            progress=stack.enter_context(ConsoleProgress()),
            pack=folder / "pack.safetensors",
            logs=folder if output is None else output.with_suffix(".loadgen"),
        )
        runs.worker.open(bundle.folder)
        is_search = settings.p99_ms is not None and settings.qps is None
        search = find_rate(runs.run, settings) if is_search else None
        result = runs.run(settings) if search is None else search.held
    environment = Environment.here()
    _show(result, search, samples)
    console().print(
        f"{environment.cpu}, {environment.num_cpus} CPUs, {threads} threads, "
        f"load {environment.load_average:.2f}"
    )
    if output is not None:
        document = {
            "environment": environment.model_dump(mode="json"),
            "bundle": {"path": str(bundles[0]), "identity": bundle.identity},
            "samples": {"source": samples.source, "lengths": samples.pack.lengths.tolist()},
            "result": None if result is None else result.model_dump(mode="json"),
            "search": None if search is None else search.model_dump(mode="json"),
            "logs": [f"{runs.logs.name}/{number:02}" for number in range(1, runs.count + 1)],
        }
        write_text(output, json.dumps(document, indent=1) + "\n")
    _judge(bundles[0], settings, result, search)


@dataclass(frozen=True)
class _Samples:
    """What LoadGen draws from."""

    pack: EvaluationPack
    source: str

    @classmethod
    def of(cls, bundle: Bundle, sequence_length: int | None) -> _Samples:
        manifest = bundle.manifest
        if manifest.evaluation is not None and sequence_length is None:
            pack = EvaluationPack.load(bundle.path(manifest.evaluation))
            return cls(pack, "the bundle's test data")
        length = usual_length([bundle], sequence_length)
        spec = bundle_feeds(bundle, batch_size=SYNTHETIC_TEXTS, sequence_length=length)
        unit = manifest.preprocessing.unit or f"{manifest.preprocessing.noun}s"
        return cls(EvaluationPack.synthetic(spec), f"random {unit}")

    def __str__(self) -> str:
        lengths, preprocessing = self.pack.lengths, self.pack.preprocessing
        if not preprocessing.ragged:
            return f"{len(lengths)} {preprocessing.noun}s, {self.source}"
        return (
            f"{len(lengths)} {preprocessing.noun}s of {lengths.min()} to {lengths.max()} "
            f"{preprocessing.unit} "
            f"({lengths.mean():.0f} on average), {self.source}"
        )


@dataclass
class _Runs:
    """Runs scenarios one after another, with their logs in numbered folders."""

    worker: Worker
    progress: ConsoleProgress
    pack: Path
    logs: Path
    count: int = field(default=0, init=False)

    def run(self, settings: LoadSettings) -> LoadResult:
        self.count += 1
        rate = "" if settings.qps is None else f", {settings.qps:.5g} queries/s"
        self.progress.start(f"{settings.scenario}{rate}")
        result = self.worker.run_load(self.pack, settings, self.logs / f"{self.count:02}")
        kept = "" if result.bound_kept else ", over the bound"
        self.progress.finish(f"p99 {result.latency.p99_ms:.2f} ms{kept}", cached=False)
        return result


def _show(result: LoadResult | None, search: RateSearch | None, samples: _Samples) -> None:
    table = Table()
    for title in ("scenario", "queries/s", "answers/s", "p50 ms", "p90", "p99", "p99.9"):
        table.add_column(title, justify="right", no_wrap=True)
    runs = (None if search is None else search.unloaded, result)
    for each in (run for run in runs if run is not None):
        latency = each.latency
        times = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms)
        table.add_row(
            each.settings.scenario,
            "" if each.settings.qps is None else f"{each.settings.qps:.5g}",
            f"{each.samples_per_s:.5g}",
            *(f"{ms:.2f}" for ms in times),
        )
    console().print(table)
    console().print(f"samples: {samples}", soft_wrap=True)
    if result is None:
        return
    console().print(
        f"{result.num_queries} queries, {result.num_samples} samples in {result.duration_s:.1f} s; "
        f"LoadGen {result.loadgen_version}; noise: {result.machine.noise}",
        soft_wrap=True,
    )
    for reason in result.reasons:
        console().print(f"not valid: {reason}", soft_wrap=True, style="red")
    if search is not None:
        console().print(
            f"the highest rate held: {result.settings.qps:.5g} queries a second, with 99% of the "
            f"answers within {result.settings.p99_ms:g} ms",
            soft_wrap=True,
        )


def _judge(
    bundle: Path, settings: LoadSettings, result: LoadResult | None, search: RateSearch | None
) -> None:
    """Refuse a bound that is not held, and a run that is not valid.

    Raises:
        BudgetError: Says how far off the bound is.
        TargetError: Says why the run is not valid.
    """
    if result is not None and result.valid:
        return
    if settings.p99_ms is None:
        assert result is not None
        raise TargetError(
            "LoadGen does not call the run valid",
            where=bundle,
            given="; ".join(result.reasons),
            fix="raise --duration; the figures above may be off until it is valid",
        )
    bound = f"99% of the answers within {settings.p99_ms:g} ms"
    if search is None:
        assert result is not None
        raise BudgetError(
            f"the rate is not held with {bound}",
            where=bundle,
            given=f"{settings.qps:g} queries a second; {result.reasons[0]}",
            fix="lower --qps or raise --p99-ms; without --qps the highest rate is found",
        )
    alone = search.unloaded.latency
    if not search.probes:
        what = "no rate is held: one query at a time already takes longer than the bound"
        fix = f"raise --p99-ms above {alone.p99_ms:.3g}, or use a faster bundle"
    elif not search.confirmations:
        lowest = min(each.settings.qps or 0 for each in search.probes)
        what = f"no rate is held with {bound}, down to {lowest:.3g} queries a second"
        fix = f"raise --p99-ms well above {alone.p99_ms:.3g}, or measure on a quieter machine"
    else:
        rates = sorted(each.settings.qps or 0 for each in search.confirmations)
        noisy = any(each.machine.noise.reasons for each in search.confirmations)
        what = (
            f"short runs held {rates[-1]:.3g} queries a second, but no run of full length did, "
            f"down to {rates[0]:.3g}, with {bound}"
        )
        fix = ("the machine was noisy: " if noisy else "") + (
            "measure on a quieter machine, or raise --p99-ms"
        )
    given = f"one query at a time: median {alone.p50_ms:.3g} ms, p99 {alone.p99_ms:.3g} ms"
    raise BudgetError(what, where=bundle, given=given, fix=fix)
