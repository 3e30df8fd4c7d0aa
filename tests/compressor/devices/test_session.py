"""A benchmark on a real device: SSH server, cable and interpreter are real."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from compressor.devices.session import Job, Outcome, bench_on
from compressor.devices.wheel import make_wheel
from compressor.errors import DeviceError
from targets.benchmark import CaseResult
from targets.bundle import Bundle

pytest.importorskip("asyncssh")
pytestmark = pytest.mark.slow

OPTIONS = ("--rounds", "2", "--sequence-length", "16", "--batch-size", "1")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return make_wheel(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bench(small_bundle, wheel):
    """Measure the small bundle on a device; returns what came back and what was said."""

    def run(device, *options):
        job = Job({"given/name": Bundle.open(small_bundle)}, options or OPTIONS)
        said = []
        return asyncio.run(bench_on(device, job, wheel, said.append)), said

    return run


def test_a_given_interpreter_measures(bench, server, device_environment):
    outcome, said = bench(server.device(python=str(device_environment / "python")))
    assert outcome.ok
    print(said, outcome.shown)
    assert list(outcome.document["bundles"]) == ["given/name"]
    assert server.left_over() == {"lock", "packages"}
    assert server.commands() == []
