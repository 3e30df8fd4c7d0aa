"""Stands for Triton's onnxruntime and openvino backends, which are not to be had without its image.

Triton runs it as a backend of its own, written in Python. It reads the same configuration and the
same files as the backend that it stands for, and gives every instance a session of the runtime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class TritonPythonModel:
    """One instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        return config  # what is not written is not there

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        given = {key: each["string_value"] for key, each in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        path = folder / config["default_model_filename"]
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]
        opener = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[config["backend"]]
        self._run = opener(path, given, self._outputs)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run what Triton has gathered as one batch."""
        import numpy as np
        import triton_python_backend_utils as triton

        feeds = [
            {name: triton.get_input_tensor_by_name(each, name).as_numpy() for name in self._inputs}
            for each in requests
        ]
        joined = {name: np.concatenate([each[name] for each in feeds]) for name in self._inputs}
        results = self._run(joined)
        ends = np.cumsum([len(each[self._inputs[0]]) for each in feeds])[:-1]
        parts = [np.split(each, ends) for each in results]
        return [
            triton.InferenceResponse(
                [
                    triton.Tensor(name, np.ascontiguousarray(part))
                    for name, part in zip(self._outputs, row, strict=True)
                ]
            )
            for row in zip(*parts, strict=True)
        ]


def open_onnxruntime(path: Path, given: dict[str, str], outputs: list[str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(given["intra_op_thread_count"])
    options.inter_op_num_threads = int(given["inter_op_thread_count"])
    options.execution_mode = onnxruntime.ExecutionMode(int(given["execution_mode"]))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(outputs, feeds)


def open_openvino(path: Path, given: dict[str, str], outputs: list[str]) -> Any:
    import openvino

    known = ("PERFORMANCE_HINT", "NUM_STREAMS", "INFERENCE_NUM_THREADS")
    options = {key: given[key] for key in known if key in given}
    compiled = openvino.Core().compile_model(str(path), given["TARGET_DEVICE"], options)

    def run(feeds: Any) -> list[Any]:
        found = compiled(feeds)
        return [found[compiled.output(name)] for name in outputs]

    return run
