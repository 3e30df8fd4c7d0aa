"""The little of CUDA that a session needs: find the GPU, buffers, a stream and graphs."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.errors import MissingLibraryError, TargetError

__all__ = ["Buffer", "Gpu", "Stream", "find_gpu", "import_runtime"]

COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
"""Attribute numbers of the driver interface (CUdevice_attribute)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU; ``compute_capability`` is ten times the version number, 86 for 8.6."""

    name: str
    compute_capability: int


def find_gpu() -> Gpu | None:
    """Ask the CUDA driver for the first GPU; None where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    device, name, numbers = ctypes.c_int(), ctypes.create_string_buffer(256), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR):
        number = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return None
        numbers.append(number.value)
    driver.cuDeviceGetName(name, len(name), device)
    return Gpu(name.value.decode(errors="replace"), 10 * numbers[0] + numbers[1])


def import_runtime(extra: str, needed_by: str) -> Any:
    """Import the bindings of the CUDA runtime.

    Raises:
        MissingLibraryError: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingLibraryError.for_extra("cuda-python", extra, needed_by) from error
    return runtime


def check(cudart: Any, returned: tuple[Any, ...]) -> Any:
    """Unpack what a call of the CUDA runtime returned.

    Raises:
        TargetError: The call failed.
    """
    status, *values = returned
    if status != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(status)[1]
        raise TargetError(
            "CUDA reported an error",
            given=text.decode(errors="replace") if isinstance(text, bytes) else text,
            fix="check that the GPU has free memory and that its driver fits the CUDA runtime",
        )
    return values[0] if values else None


class Buffer:
    """Memory for one tensor: page-locked on the host, and on the device."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._host = 0
        self.device = 0
        self.capacity_bytes = 0

    def reserve(self, size_bytes: int) -> bool:
        """Make room; tells whether the memory moved."""
        if size_bytes <= self.capacity_bytes:
            return False
        self.free()
        self.device = int(check(self._cudart, self._cudart.cudaMalloc(size_bytes)))
        self._host = int(check(self._cudart, self._cudart.cudaMallocHost(size_bytes)))
        self.capacity_bytes = size_bytes
        return True

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[np.generic]:
        """The host memory as an array; valid until the next ``reserve`` or ``free``."""
        size = int(np.prod(shape, dtype=np.int64))
        memory = (ctypes.c_uint8 * (size * dtype.itemsize)).from_address(self._host)
        return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)

    def upload(self, size_bytes: int, stream: Stream) -> None:
        """Copy host to device, in the order of the stream."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call = self._cudart.cudaMemcpyAsync(
            self.device, self._host, size_bytes, kind, stream.handle
        )
        check(self._cudart, call)

    def download(self, size_bytes: int, stream: Stream) -> None:
        """Copy device to host, in the order of the stream."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call = self._cudart.cudaMemcpyAsync(
            self._host, self.device, size_bytes, kind, stream.handle
        )
        check(self._cudart, call)

    def free(self) -> None:
        """Give the memory back."""
        if self.device:
            self._cudart.cudaFree(self.device)
        if self._host:
            self._cudart.cudaFreeHost(self._host)
        self.device = self._host = self.capacity_bytes = 0


class Stream:
    """A queue of work on the device, and the graphs that were recorded from it."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self.handle = check(cudart, cudart.cudaStreamCreate())

    def synchronize(self) -> None:
        """Wait until all work is done."""
        check(self._cudart, self._cudart.cudaStreamSynchronize(self.handle))

    def begin_recording(self) -> None:
        """Record what is put in the stream from now on instead of running it."""
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(self._cudart, self._cudart.cudaStreamBeginCapture(self.handle, mode))

    def end_recording(self) -> Any | None:
        """The graph of what was recorded; None where something in it cannot be recorded."""
        status, graph = self._cudart.cudaStreamEndCapture(self.handle)
        if status != self._cudart.cudaError_t.cudaSuccess:
            self._cudart.cudaGetLastError()  # forget the failed recording
            return None
        status, executable = self._cudart.cudaGraphInstantiate(graph, 0)
        self._cudart.cudaGraphDestroy(graph)
        return executable if status == self._cudart.cudaError_t.cudaSuccess else None

    def launch(self, graph: Any) -> None:
        """Run a recorded graph."""
        check(self._cudart, self._cudart.cudaGraphLaunch(graph, self.handle))

    def forget(self, graph: Any) -> None:
        """Free a recorded graph."""
        self._cudart.cudaGraphExecDestroy(graph)

    def close(self) -> None:
        """Free the stream."""
        if self.handle is not None:
            self._cudart.cudaStreamDestroy(self.handle)
            self.handle = None
