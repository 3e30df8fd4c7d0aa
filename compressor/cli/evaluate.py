"""What ``compressor evaluate`` does and prints."""

from __future__ import annotations

import time
from pathlib import Path

import typer

from targets.bundle import Bundle
from targets.errors import BundleError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import AudioPreprocessing
from targets.scoring import Accuracy, perplexity
from targets.worker_client import Worker

__all__ = ["evaluate_bundle"]


def evaluate_bundle(path: Path, *, threads: int) -> Accuracy:
    """Run a bundle on its own test data, and print its accuracy beside the recorded one.

    Raises:
        BundleError: The bundle carries no test data.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if manifest.evaluation is None:
        raise BundleError(
            "the bundle carries no test data",
            where=path,
            given="evaluation null in its manifest",
            fix="build it with bundle.evaluation_data: true in the recipe",
        )
    pack = bundle.path(manifest.evaluation)
    with Worker(threads=threads) as worker:
        worker.open(bundle.folder)
        start = time.perf_counter()
        outputs = worker.predict(pack)[manifest.signature.outputs[0].name]
        seconds = time.perf_counter() - start
    samples = EvaluationPack.load(pack)
    units = manifest.answers.units(outputs, samples)
    found = manifest.answers.score(units)
    here, built = f"{found.measure} here:", "when it was built:"
    width = max(len(here), len(built))
    if units.losses is not None:
        typer.echo(f"{'perplexity here:':<{width}} {perplexity(units.losses):.3f}")
    typer.echo(f"{here:<{width}} {found}")
    recorded = None if manifest.measured is None else manifest.measured.accuracy
    if recorded is not None:
        typer.echo(f"{built:<{width}} {recorded}")
    if isinstance(samples.preprocessing, AudioPreprocessing):
        heard = float(samples.lengths.sum()) / samples.preprocessing.sampling_rate
        typer.echo(f"{heard:.0f} s of sound in {seconds:.1f} s: {heard / seconds:.1f}x real time")
    return found
