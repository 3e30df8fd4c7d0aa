"""The bundles of one target predict in one process, and a failure ends it for itself alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.measuring import Evaluators
from targets import registry
from targets.errors import BundleError


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
