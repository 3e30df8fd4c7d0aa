"""What the toolkit itself costs: recipes, passes, the store, Q/DQ rewriting, bundles, start-up."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from compressor.data import Split, Splits
from compressor.manager import PassManager
from compressor.passes import Pass, PassContext, PassResult
from compressor.progress import Silent
from compressor.recipe import builtin_recipes, load_recipe, recipe_json_schema
from compressor.store import RunStore, StoredStep
from targets import Bundle, Manifest, Signature, registry
from targets.base import Form
from targets.bundle import SCHEMA_VERSION
from targets.feeds import FeedsSpec, synthetic_feeds
from targets.preprocessing import TextPreprocessing


class Nothing(Pass):
    """A pass that gives its input back: what is left is the cost of manager and store."""

    name: ClassVar[str] = "nothing"
    consumes: ClassVar[Form] = "torch"
    produces: ClassVar[Form] = "torch"
    paper: ClassVar[str] = "none"

    def run(self, model: Any, context: PassContext) -> PassResult:
        return PassResult(model)


@pytest.fixture
def splits() -> Splits:
    part = Split(("w1 w2 w3",) * 8, np.zeros(8, np.int64))
    return Splits(part, part, part, ("a", "b", "c"))


@pytest.fixture
def original(classifier: Any, tmp_path: Path) -> StoredStep:
    def keep(files: Path, work: Path) -> dict[str, Any]:
        classifier.save(files)
        return {}

    return RunStore(tmp_path / "original").step("import", {}, keep)


def make_manager(store: Path, original: StoredStep, splits: Splits, seed: int = 0) -> PassManager:
    return PassManager(
        store=RunStore(store),
        original=original,
        splits=lambda: splits,
        data_hash="0",
        seed=seed,
        width_multiple=8,
        progress=Silent(),
    )


@pytest.fixture
def bundle_folder(onnx_path: Path, classifier: Any, signature: Signature, tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(onnx_path.read_bytes())
    classifier.processor.save_pretrained(tmp_path)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="bench",
        task="text-classification",
        target="onnxruntime",
        target_settings={},
        precision="fp32",
        signature=signature,
        model="model.onnx",
        labels=("a", "b", "c"),
        preprocessing=TextPreprocessing(max_length=128, pad_token_id=0),
        files={},
    )
    Bundle.create(tmp_path, manifest)
    return tmp_path


def test_load_a_recipe(benchmark: BenchmarkFixture) -> None:
    path = builtin_recipes()["balanced"]
    values = {"model": "m", "data.train": "a.csv", "data.test": "b.csv", "output": "o"}
    assert benchmark(load_recipe, path, values=values).passes


def test_describe_recipes_as_json_schema(benchmark: BenchmarkFixture) -> None:
    assert benchmark(recipe_json_schema)["$defs"]


def test_run_a_trivial_pass(
    benchmark: BenchmarkFixture, original: StoredStep, splits: Splits, tmp_path: Path
) -> None:
    """Load, run, save, hash and record; each round is a new seed, so nothing is found again."""
    seeds = itertools.count()

    def run() -> list[StoredStep]:
        return make_manager(tmp_path / "store", original, splits, next(seeds)).run([Nothing()])

    [step] = benchmark.pedantic(run, rounds=10, warmup_rounds=1)
    assert not step.cached


def test_find_a_finished_pass(
    benchmark: BenchmarkFixture, original: StoredStep, splits: Splits, tmp_path: Path
) -> None:
    """A new manager each time: one manager remembers what it made."""

    def run() -> list[StoredStep]:
        return make_manager(tmp_path / "store", original, splits).run([Nothing()])

    run()
    [step] = benchmark(run)
    assert step.cached


def test_rewrite_qdq_for_a_target(
    benchmark: BenchmarkFixture, onnx_path: Path, signature: Signature, tmp_path: Path
) -> None:
    """Every rewriting that lowering an int8 model does, loading the file left out."""
    import onnx

    from compressor.quantization import quantize_static
    from targets import qdq

    spec = FeedsSpec(
        lengths=(16, 9),
        num_ids=2000,
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    path = tmp_path / "int8.onnx"
    batches = [synthetic_feeds(signature, spec)]
    quantize_static(onnx_path, path, batches, activations="int8")
    encoded = path.read_bytes()

    def rewrite(model: Any) -> int:
        qdq.gather_before_dequantize(model)
        return qdq.activations_to_uint8(model)

    turned = benchmark.pedantic(
        rewrite, setup=lambda: ((onnx.load_from_string(encoded),), {}), rounds=15, warmup_rounds=1
    )
    assert turned


@pytest.mark.parametrize("verify", [False, True], ids=["unverified", "verified"])
def test_open_a_bundle(benchmark: BenchmarkFixture, bundle_folder: Path, verify: bool) -> None:
    benchmark.extra_info["size_bytes"] = Bundle.open(bundle_folder).size_bytes
    assert benchmark(Bundle.open, bundle_folder, verify=verify).size_bytes


def test_load_a_bundle_on_onnx_runtime(benchmark: BenchmarkFixture, bundle_folder: Path) -> None:
    target = registry.get("onnxruntime")
    bundle = Bundle.open(bundle_folder)
    assert benchmark.pedantic(target.load, (bundle,), {"threads": 1}, rounds=10, warmup_rounds=1)


def test_start_the_command_line(benchmark: BenchmarkFixture) -> None:
    """A process that prints the help, from its start to its end."""
    command = [sys.executable, "-c", "from compressor.cli import main; main(['--help'])"]
    done = benchmark.pedantic(
        subprocess.run, (command,), {"capture_output": True}, rounds=7, warmup_rounds=1
    )
    assert done.returncode == 0
