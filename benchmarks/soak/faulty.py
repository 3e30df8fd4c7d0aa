"""A target that is ONNX Runtime until the environment says otherwise, in its worker process."""

from __future__ import annotations

from pathlib import Path

__all__ = ["FAULTS", "FAULT_VARIABLE", "MOMENTS", "announce"]

FAULT_VARIABLE = "SOAK_FAULT"
"""``<fault>@<moment>``"""

FAULTS = ("crash", "killed", "memory")
MOMENTS = ("lower", "load", "predict", "time")

_MODULE = '''
"""See benchmarks/soak/faulty.py."""
import ctypes, os, resource, signal
import numpy as np
import psutil
from targets.base import Session
from targets.runtimes.onnxruntime import OnnxRuntime

PREDICTIONS = 12  # more runs than the predictions take: it is being timed

def fail(moment):
    fault, _, at = os.environ.get("SOAK_FAULT", "").partition("@")
    if at != moment:
        return
    if fault == "crash":
        ctypes.string_at(0)
    if fault == "killed":  # as the kernel does when the machine has no memory left
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "memory":
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, resource.RLIM_INFINITY))
        np.ones(2**28)

class Faulty(OnnxRuntime):
    """ONNX Runtime that fails when it is told to."""
    name = "faulty"

    def lower(self, source, folder):
        lowered = super().lower(source, folder)
        fail("lower")
        return lowered

    def load(self, bundle, *, threads):
        fail("load")
        return FaultySession(super().load(bundle, threads=threads))

class FaultySession(Session):
    def __init__(self, session):
        super().__init__(session.signature)
        self.session = session
        self.count = 0

    def _run(self, feeds):
        self.count += 1
        fail("predict" if self.count <= PREDICTIONS else "time")
        return self.session._run(feeds)

    def close(self):
        self.session.close()
'''


def announce(folder: Path) -> Path:
    """Write the target as another distribution that announces it; returns its place for imports."""
    info = folder / "faulty_target-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "faulty_target.py").write_text(_MODULE, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty-target\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[compressor.targets]\nfaulty = faulty_target:Faulty\n")
    return folder
