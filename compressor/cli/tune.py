"""What ``compressor tune`` prints and writes."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.table import Table

from compressor.cli.files import check_folder
from compressor.cli.progress import ConsoleProgress, console
from compressor.report.wording import milliseconds
from targets.benchmark import BenchmarkSettings
from targets.bundle import Bundle, Trial, Tuning
from targets.tuning import check_folder as check_empty
from targets.tuning import describe, tune, write_tuned

__all__ = ["tune_bundle"]


def tune_bundle(
    path: Path, output: Path, settings: BenchmarkSettings, *, even_if_noisy: bool = False
) -> Tuning:
    """Tune a bundle, print the trials, and write the bundle with what was chosen.

    Raises:
        BundleError: The output folder is not empty.
        ReportError: It cannot be written.
    """
    check_empty(output)
    check_folder(output)
    bundle = Bundle.open(path)
    with ConsoleProgress() as progress:
        progress.start(f"tune for {settings.shapes[0]}")
        tuning = tune(bundle, settings, even_if_noisy=even_if_noisy, on_progress=progress.update)
        progress.finish("", cached=False)
    write_tuned(bundle, tuning, output)
    console().print(_table(tuning))
    console().print(describe(tuning))
    console().print(f"bundle: {output}", soft_wrap=True)
    if bundle.is_signed:
        console().print("note: the tuned bundle is a new one and is not signed: sign it as well")
    return tuning


def _table(tuning: Tuning) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("alternative")
    for title in ("ms", "gain", "95% interval"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for trial in tuning.trials:
        table.add_row(*_cells(trial))
    return table


def _cells(trial: Trial) -> tuple[str, ...]:
    gain = trial.gain
    return (
        trial.name,
        milliseconds(trial.median_ms),
        "" if gain is None else f"{gain.ratio:.2f}x",
        "" if gain is None else f"{gain.low:.2f}-{gain.high:.2f}",
        "" if trial.rejected is None else trial.rejected.splitlines()[0],
    )
