"""A classifier of about one millisecond, and results without names of machines or users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from targets import Signature, TensorSpec
from targets.environment import Environment

LAYERS, WIDTH, VOCABULARY = 4, 128, 2000
MAX_LENGTH = 128


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Record what the toolkit itself records, in place of names."""
    cpu = machine_info.get("cpu", {})
    for name in list(machine_info):
        del machine_info[name]
    machine_info |= Environment.here().model_dump(mode="json")
    machine_info["cpu_hz"] = cpu.get("hz_advertised_friendly")


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Keep the statistics and drop the raw times."""
    output_json.pop("commit_info", None)
    for each in output_json["benchmarks"]:
        each["stats"].pop("data", None)


@pytest.fixture(scope="session")
def signature() -> Signature:
    return Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"))
            for name in ("input_ids", "attention_mask")
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )


@pytest.fixture(scope="session")
def classifier() -> Any:
    """A random BERT, 4 layers of width 128."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from compressor.model import TorchModel

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = [*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token=special[1])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    torch.manual_seed(0)
    module = BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=MAX_LENGTH,
            num_labels=3,
        )
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], unk_token=special[1]
    )
    return TorchModel(module.eval(), wrapped, "text-classification", MAX_LENGTH)


@pytest.fixture(scope="session")
def onnx_path(
    classifier: Any, signature: Signature, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The classifier as ONNX."""
    from compressor.export import export_onnx

    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(classifier, signature, path)
    return path
