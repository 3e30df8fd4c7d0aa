"""Keep the history of a training as numbers and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw_curves", "save_curves"]

_INCHES = (8.0, 3.2)


def save_curves(history: Sequence[Mapping[str, float]], folder: Path, *, title: str = "") -> None:
    """Write ``curves.json``, a list with one object a logging step, and ``curves.svg``.

    Args:
        history: As in :class:`~compressor.training.loop.TrainingResult`.
        folder: Made if absent.
        title: Above the picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [dict(entry) for entry in history]
    (folder / "curves.json").write_text(json.dumps(entries, indent=1) + "\n")
    draw_curves(history, folder / "curves.svg", title=title)


def draw_curves(history: Sequence[Mapping[str, float]], path: Path, *, title: str = "") -> Path:
    """Draw loss and validation accuracy over the epochs.

    Args:
        history: As in :class:`~compressor.training.loop.TrainingResult`.
        path: Ends in .png or .svg.
        title: Above the picture.

    Returns:
        The path.
    """
    # The object interface: pyplot would keep global state and look for a display.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for axes, key, label, factor in (
        (loss, "loss", "training loss", 1.0),
        (accuracy, "validation_accuracy", "validation accuracy (%)", 100.0),
    ):
        points = [(entry["epoch"], entry[key] * factor) for entry in history if key in entry]
        marker = "o" if key == "validation_accuracy" else None
        axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, markersize=3)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    if title:
        figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date and with fixed identifiers, equal histories give equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(path, metadata=metadata)
    return path
