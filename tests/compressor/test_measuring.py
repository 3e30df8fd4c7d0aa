"""The bundles of one target predict in one process, and a failure ends it for itself alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from compressor.data import Split, Splits
from compressor.measuring import Evaluators, evaluation_packs, pack_file
from compressor.store import RunStore
from targets import registry
from targets.bundle import Bundle
from targets.errors import BundleError
from targets.evaluation_pack import EvaluationPack


def test_bundles_of_a_target_share_a_process_until_one_fails(
    small_bundle: Path, tmp_path: Path
) -> None:
    target, other = registry.get("onnxruntime"), registry.get("openvino")
    with Evaluators() as evaluators:
        with evaluators.worker(target) as first:
            first.open(small_bundle)
        with evaluators.worker(target) as again:
            again.open(small_bundle)
        with evaluators.worker(other) as apart:
            assert apart.pid != first.pid
        assert again is first
        with (
            pytest.raises(BundleError, match="manifest"),
            evaluators.worker(target) as broken,
        ):
            broken.open(tmp_path)
        assert not first.is_alive
        with evaluators.worker(target) as anew:
            anew.open(small_bundle)
            assert anew.pid != first.pid
        assert apart.is_alive
    assert not anew.is_alive
    assert not apart.is_alive


def test_models_with_other_classes_share_no_labels(small_bundle: Path, tmp_path: Path) -> None:
    """The same texts, with numbers of classes in another order."""
    store = RunStore(tmp_path / "store")
    first = Bundle.open(small_bundle)
    turned = copy.copy(first)
    labels = tuple(reversed(first.manifest.labels))
    turned.manifest = first.manifest.model_copy(update={"labels": labels})
    found = []
    for bundle, numbers in ((first, [0, 1]), (turned, [1, 0])):
        split = Split(("a text", "another"), np.array(numbers))
        splits = Splits(split, split, split, bundle.manifest.labels)
        step = evaluation_packs(
            bundle, store=store, splits=lambda splits=splits: splits, data_hash="same"
        )
        found.append(EvaluationPack.load(step.folder / pack_file("test")).labels.tolist())
    assert found == [[0, 1], [1, 0]]
