"""From folders of WAV files to bundles that answer as the trained model does, for two networks."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import targets
from compressor.data import Split
from compressor.manager import predict_classes
from compressor.tasks import get_task

RATE = 8000
LABELS = {"high": 1800, "low": 200, "middle": 700}
SPLITS = {"train": 8, "validation": 4, "test": 4}


def tone(hz: float, seed: int) -> NDArray[np.int16]:
    """A third of a second to a whole one."""
    random = np.random.default_rng(seed)
    time = np.arange(int(RATE * random.uniform(0.35, 1.0))) / RATE
    sound = np.sin(2 * np.pi * hz * random.uniform(0.9, 1.1) * time)
    return np.rint(8000 * (sound + 0.1 * random.standard_normal(len(time)))).astype(np.int16)


def write_wav(path: Path, samples: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    for number, (split, count) in enumerate(SPLITS.items()):
        for label, hz in LABELS.items():
            (folder / split / label).mkdir(parents=True)
            for index in range(count):
                samples = tone(hz, seed=1000 * number + 100 * len(label) + index)
                write_wav(folder / split / label / f"{index}.wav", samples)
    return folder


def wav2vec2(folder: Path, norm: str) -> None:
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 8, 8),
        conv_stride=(5, 8, 8),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        classifier_proj_size=16,
        initializer_range=0.2,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer").save_pretrained(folder)


def whisper(folder: Path) -> None:
    config = WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=100,
        classifier_proj_size=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.2,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=2).save_pretrained(folder)


MAKERS: dict[str, Callable[[Path], None]] = {
    "wav2vec2": lambda folder: wav2vec2(folder, "group"),
    "wav2vec2-mask": lambda folder: wav2vec2(folder, "layer"),
    "whisper": whisper,
}

RECIPE = """
task: audio-classification
model: trained
passes:
  - {pass: drop_layers, num_layers: 2}
  - {pass: prune, heads: 0.5, ffn: 0.5, examples: 16}
  - {pass: distill, epochs: 1, batch_size: 8}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 16}]
  int8-dynamic: [{pass: quantize, method: dynamic}]
targets: [onnxruntime, openvino, pytorch]
budget: {max_accuracy_drop: 100}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 8000, batch_sizes: [1]}
output: out
"""


@pytest.fixture(scope="module", params=MAKERS)
def home(
    request: Any,
    tmp_path_factory: pytest.TempPathFactory,
    data: Path,
    compressor: Callable[..., Any],
) -> Path:
    """A finished run of the recipe on one of the networks."""
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MAKERS[request.param](folder / "model")
    store = ("--store", folder / "store")
    trained = ("--output", folder / "trained", "--max-length", 8000 * 2)
    settings = ("-s", "epochs=1", "-s", "batch_size=8")
    tuned = compressor("finetune", folder / "model", data, *trained, *store, *settings)
    assert tuned.code == 0, tuned.err
    (folder / "recipe.yaml").write_text(RECIPE)
    ran = compressor("run", folder / "recipe.yaml", "--data", data, *store)
    assert ran.code == 0, ran.err + ran.out
    return folder


def files(data: Path) -> list[str]:
    return sorted(map(str, (data / "test").rglob("*.wav")))


def torch_labels(folder: Path, inputs: list[str]) -> list[str]:
    """What a checkpoint answers in torch."""
    model = get_task("audio-classification").load_checkpoint(folder)
    split = Split(tuple(inputs), np.zeros(len(inputs), dtype=np.int64))
    return [model.labels[index] for index in predict_classes(model, split)]


def test_every_variant_runs_on_every_target(home: Path) -> None:
    report = json.loads((home / "out/report.json").read_text())
    rows = [row for row in report["rows"] if row["kind"] == "candidate"]
    measured = {(row["target"], row["variant"]) for row in rows if row["status"] == "measured"}
    variants = ("fp32", "int8", "int8-dynamic")
    assert {(each, name) for each in ("onnxruntime", "openvino") for name in variants} <= measured


def test_the_untouched_model_answers_the_same_in_its_bundles(home: Path, data: Path) -> None:
    inputs = files(data)
    assert len(inputs) == 12
    expected = torch_labels(home / "trained", inputs)
    for bundle in baselines(home):
        with targets.load(bundle) as predictor:
            assert [each.label for each in predictor.predict(inputs)] == expected


def baselines(home: Path) -> list[Path]:
    raise NotImplementedError
