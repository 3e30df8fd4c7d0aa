"""What the benchmarks of texts begin with: MiniLM-L6, fine-tuned on one of the data sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["MAX_LENGTH", "MODEL", "TASKS", "fetch", "fine_tune", "run_compressor"]

ROOT = Path(__file__).parents[1]
MODEL = "minilm-l6"
TASKS = ("trec-6", "rotten-tomatoes", "20-newsgroups")
MAX_LENGTH = 128
MISSED_BUDGET = 5


def fetch(*names: str) -> Path:
    """Bring assets, where they are not there yet; returns the folder that holds them."""
    command = [sys.executable, str(ROOT / "scripts" / "fetch_assets"), *names]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    usual = Path.home() / ".cache" / "compressor" / "assets"
    return Path(os.environ.get("COMPRESSOR_ASSETS") or usual).absolute()


def fine_tune(task: str, assets: Path, checkpoint: Path) -> Path:
    """Fine-tune the model on a data set; quick where that was done before."""
    run_compressor(
        "finetune", assets / MODEL, assets / task,
        "--output", checkpoint, "--overwrite", "--max-length", MAX_LENGTH,
    )  # fmt: skip
    return checkpoint.absolute()


def run_compressor(*arguments: object) -> None:
    """Run the command line; ends this process where it fails. A missed budget is a result, too."""
    command = [sys.executable, "-m", "compressor", *map(str, arguments)]
    done = subprocess.run(command, check=False)
    if done.returncode not in (0, MISSED_BUDGET):
        sys.exit(done.returncode)
