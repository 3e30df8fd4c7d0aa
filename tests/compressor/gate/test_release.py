"""The release step of the examples, from the checkpoint to signed archives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.report.files import read_report
from targets import load

SCRIPT = Path(__file__).parents[3] / "examples" / "release" / "release.sh"


@pytest.mark.slow
def test_the_release_step_ends_with_signed_archives_or_the_reason(
    finished, home, keys, tmp_path: Path
) -> None:
    output = tmp_path / "compressed"

    def release(recipe: Path, *last: Path) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        return subprocess.run(
            ["bash", str(SCRIPT), *map(str, (recipe, output, *keys, *last))],
            env=os.environ
            | {
                "PATH": path,
                "PYTHONPATH": str(SCRIPT.parents[2]),
                "COMPRESSOR_STORE": str(finished.store),
                "EVEN_IF_NOISY": "true",
                "OMP_NUM_THREADS": "1",  # as the run whose steps are found again
            },
            capture_output=True,
            text=True,
            check=False,
        )

    done = release(home / "recipe.yaml", finished.output)
    assert done.returncode == 0, (done.stdout, done.stderr)
    chosen = [row for row in read_report(output).rows if row.chosen]
    archives = sorted(output.glob("release/*.tar.zst"))
    assert len(chosen) >= 2
    assert {path.name for path in archives} == {
        f"{Path(row.bundle).name}.tar.zst" for row in chosen
    }
    assert done.stdout.count(": signed, key ") == len(archives)
    for name in ("gate.xml", "gate.md", "gate.json"):
        assert (output / name).is_file()
    with load(next(path for path in archives if "onnxruntime" in path.name)) as predictor:
        assert predictor.predict(["who is the king"])[0].label

    strict = tmp_path / "strict.yaml"
    recipe = (home / "recipe.yaml").read_text()
    for name in ("model: model", "train: train", "validation: validation", "test: test"):
        key, _, value = name.partition(": ")
        recipe = recipe.replace(name, f"{key}: {home / value}")
    strict.write_text(recipe.replace("max_accuracy_drop: 90", "max_size_mb: 0.001"))
    missed = release(strict)
    assert missed.returncode == 5, (missed.stdout, missed.stderr)
    assert "gate FAILED" in missed.stdout
    assert not (output / "release").exists()
