"""Text to token ids on Triton's Python backend, with nothing but numpy and tokenizers.

This file is copied into the model repository as it is; ``config.pbtxt`` beside it holds the lengths
and names the outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """Tokenizes a batch of texts and pads it to its longest.  # (texts, tokens)"""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer and the configuration; Triton calls it once.

        Args:
            args: As Triton passes them: where the model lies, and its configuration as JSON.
        """
        from tokenizers import Tokenizer

        config = json.loads(args["model_config"])
        told = {key: each["string_value"] for key, each in config["parameters"].items()}
        side = told.pop("truncation_side", "right")
        given = {key: int(value) for key, value in told.items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(given["max_length"], direction=side)
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._input = config["input"][0]["name"]
        self._outputs = [each["name"] for each in config["output"]]
        self._types = {each["name"]: each["data_type"] for each in config["output"]}
        self._given = given

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests; each may hold several texts."""
        import triton_python_backend_utils as triton

        return [self._answer(request, triton) for request in requests]

    def _answer(self, request: Any, triton: Any) -> Any:
        import numpy as np

        given = triton.get_input_tensor_by_name(request, self._input).as_numpy()
        try:
            texts = [each.decode() for each in given.reshape(-1)]
        except UnicodeDecodeError as error:
            return triton.InferenceResponse(
                error=triton.TritonError(f"a text is not valid UTF-8: {error}")
            )
        encodings = self._tokenizer.encode_batch(texts)
        shape = (len(texts), self._length(max(len(each.ids) for each in encodings)))
        rows = {
            "input_ids": np.full(shape, self._given["pad_token_id"]),
            "attention_mask": np.zeros(shape, int),
            "token_type_ids": np.zeros(shape, int),
        }
        for index, each in enumerate(encodings):
            rows["input_ids"][index, : len(each.ids)] = each.ids
            rows["attention_mask"][index, : len(each.ids)] = 1
            rows["token_type_ids"][index, : len(each.ids)] = each.type_ids
        tensors = [
            triton.Tensor(name, rows[name].astype(triton.triton_string_to_numpy(self._types[name])))
            for name in self._outputs
        ]
        return triton.InferenceResponse(tensors)

    def _length(self, longest: int) -> int:
        """The longest text, rounded up, but not beyond what the model reads."""
        multiple = self._given["length_multiple"]
        return min(-(-max(longest, 1) // multiple) * multiple, self._given["max_length"])
