"""A network that somebody else's distribution brings, as the documentation has it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compressor.lowering import _versions
from compressor.manager import PassManager
from compressor.passes.distill import Distill
from compressor.passes.export import Export
from compressor.report.files import read_report
from compressor.tasks import get_task
from compressor.training.finetuning import finetune
from compressor.training.settings import FinetuneSettings
from targets import get
from targets.discovery import package_source
from targets.errors import CheckpointError, PluginError
from targets.networks import network_source, register_network
from tests.compressor.conftest import Outcome, make_image_splits, write_images

DOCUMENT = Path(__file__).parents[2] / "docs" / "add-a-network.md"


@pytest.fixture
def blocks() -> list[str]:
    """The module, and how a checkpoint is made of it."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """Install ``my_networks``, with some text."""
    site = tmp_path / "site"

    def install(text: str) -> Path:
        info = site / "my_networks-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-networks\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            "[compressor.networks]\ntinynet = my_networks:register\n"
        )
        (site / "my_networks.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        return site

    yield install
    sys.modules.pop("my_networks", None)
    package_source.cache_clear()


@pytest.fixture
def checkpoint(
    blocks: list[str],
    announce: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The one of the documentation."""
    module, making = blocks
    monkeypatch.setenv("PYTHONPATH", str(announce(module)))  # of the processes that build
    monkeypatch.chdir(tmp_path)
    exec(making, {})  # noqa: S102  (our own documentation)
    return tmp_path / "my-checkpoint"


@pytest.mark.slow
def test_the_documented_network_is_pruned_distilled_quantized_and_runs(
    checkpoint: Path, tmp_path: Path, compressor: Callable[..., Outcome]
) -> None:
    for number, split in enumerate(("train", "validation", "test")):
        write_images(tmp_path / "images" / split, 24, number)
    assert compressor("inspect", checkpoint).code == 0
    tuned = tmp_path / "tuned"
    trained = finetune(
        get_task("image-classification").load_checkpoint(checkpoint),
        make_image_splits(),
        FinetuneSettings(epochs=20, learning_rate=0.01, batch_size=8),
        seed=0,
        folder=tmp_path / "work",
        progress=lambda fraction, line: None,
    )
    trained.model.save(tuned)
    arguments: tuple[Any, ...] = (
        "run", "image", "--model", tuned, "--data", tmp_path / "images",
        "--output", tmp_path / "out", "--store", tmp_path / "store",
        "--set", "passes.1.epochs=4", "--set", "targets=[onnxruntime]",
        "--set", "budget={require: any, max_accuracy_drop: 50}",
        "--set", "benchmark.rounds=1", "--set", "benchmark.min_round_s=0.01",
    )  # fmt: skip
    outcome = compressor(*arguments)
    assert outcome.code in (0, 9), outcome.err
    report = read_report(tmp_path / "out")
    rows = {row.variant: row for row in report.rows if row.kind == "candidate"}
    assert rows["int8"].status == "measured"
    before = report.row(kind="baseline", target="onnxruntime", precision="fp32")
    assert rows["fp32"].size_bytes < before.size_bytes
    assert before.test is not None
    assert before.test.value > 0.9


def test_its_code_is_part_of_what_steps_are_found_by(checkpoint: Path, tmp_path: Path) -> None:
    [(name, first)] = network_source(checkpoint).items()
    assert name == "source of my_networks"
    with (tmp_path / "site" / "my_networks.py").open("a") as stream:
        stream.write("\n# changed\n")
    package_source.cache_clear()
    assert network_source(checkpoint) != {name: first}


def test_what_was_made_with_other_code_of_it_is_not_found_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    step: Any = SimpleNamespace(folder=checkpoint, content_hash="1")
    unused: Any = None
    manager = PassManager(
        store=unused, original=step, splits=unused, data_hash="2", seed=0, width_multiple=1,
        progress=unused,
    )  # fmt: skip

    def keys() -> list[object]:
        package_source.cache_clear()
        found = [manager._inputs(each, step) for each in (Export(), Distill())]
        return [*found, _versions(get("pytorch"), checkpoint)]

    before = keys()
    assert keys() == before
    with (tmp_path / "site" / "my_networks.py").open("a") as stream:
        stream.write("\n# changed\n")
    assert all(one != other for one, other in zip(before, keys(), strict=True))


def test_a_network_that_cannot_be_registered_is_told_by_its_owner(
    announce: Callable[[str], Path], tmp_path: Path
) -> None:
    announce("def register():\n    raise RuntimeError('boom')\n")
    (tmp_path / "config.json").write_text('{"model_type": "tinynet"}')
    with pytest.raises(PluginError, match="my-networks announces the network 'tinynet'") as caught:
        register_network(tmp_path)
    assert caught.value.given == "RuntimeError: boom"
    assert caught.value.where == "entry point compressor.networks: my_networks:register"
    assert "docs/add-a-network.md" in str(caught.value.fix)


def test_a_network_that_nobody_announces_is_refused_with_the_way_to_add_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "othernet"}')
    assert network_source(tmp_path) == {}
    with pytest.raises(CheckpointError, match="knows no network of this kind") as caught:
        register_network(tmp_path)
    assert "docs/add-a-network.md" in str(caught.value.fix)
