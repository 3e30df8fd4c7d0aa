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
from compressor.tasks import get_task, infer_task

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


def wav2vec2(folder: Path) -> None:
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
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        classifier_proj_size=16,
        initializer_range=0.2,
    )
    Wav2Vec2ForSequenceClassification(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)


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


MAKERS: dict[str, Callable[[Path], None]] = {"wav2vec2": wav2vec2, "whisper": whisper}

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
    trained = ("--output", folder / "trained", "--max-length", 16_000)
    settings = ("-s", "epochs=1", "-s", "batch_size=8", "--task", "audio-classification")
    tuned = compressor("finetune", folder / "model", data, *trained, *store, *settings)
    assert tuned.code == 0, tuned.err
    (folder / "recipe.yaml").write_text(RECIPE)
    ran = compressor("run", folder / "recipe.yaml", "--data", data, *store)
    assert ran.code == 0, ran.err + ran.out
    return folder


def labels(bundle: Path, data: Path) -> list[str]:
    """The answers of a bundle to the recordings of the test split."""
    files = sorted(map(str, (data / "test").rglob("*.wav")))
    assert len(files) == len(LABELS) * SPLITS["test"]
    with targets.load(bundle) as predictor:
        return [each.label for each in predictor.predict(files)]


def scores(bundle: Path, data: Path) -> NDArray[np.float64]:
    files = sorted(map(str, (data / "test").rglob("*.wav")))
    with targets.load(bundle) as predictor:
        return np.array([list(each.scores.values()) for each in predictor.predict(files)])


def test_the_head_is_found_and_the_network_reads_what_the_data_needs(home: Path) -> None:
    assert infer_task(home / "trained") == "audio-classification"
    model = get_task("audio-classification").load_checkpoint(home / "trained")
    assert model.labels == tuple(LABELS)
    assert model.max_length == 16_000


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_bundles_answer_as_torch_does(home: Path, data: Path, target: str) -> None:
    bundles = home / "out/bundles"
    assert labels(bundles / f"fp32-{target}", data) == labels(bundles / "fp32-pytorch", data)
    expected = scores(bundles / "fp32-pytorch", data)
    np.testing.assert_allclose(scores(bundles / f"fp32-{target}", data), expected, atol=1e-3)


@pytest.mark.parametrize(
    "bundle", ["int8-onnxruntime", "int8-openvino", "int8-dynamic-onnxruntime"]
)
def test_integers_answer_nearly_so(home: Path, data: Path, bundle: str) -> None:
    bundles = home / "out/bundles"
    expected = scores(bundles / "fp32-pytorch", data)
    np.testing.assert_allclose(scores(bundles / bundle, data), expected, atol=0.1)


def test_the_layers_are_pruned(home: Path) -> None:
    report = json.loads((home / "out/report.json").read_text())
    found = json.dumps(report["steps"])
    assert "2 layers x 2 heads x 32 FFN" in found


def test_a_recording_is_classified_on_the_command_line(
    home: Path, data: Path, tmp_path: Path, compressor: Callable[..., Any]
) -> None:
    bundle, file = home / "out/bundles/fp32-onnxruntime", data / "test/low/0.wav"
    found = compressor("predict", bundle, "--file", file)
    assert found.code == 0, found.err
    assert json.loads(found.out)["label"] in LABELS
    long = tmp_path / "long.wav"
    write_wav(long, np.tile(tone(200, 0), 6))
    cut = compressor("predict", bundle, "--file", long)
    assert json.loads(cut.out)["truncated"]
    assert "1 of 1 recordings were longer than the 16000 samples that the model reads" in cut.err
    (tmp_path / "text.wav").write_text("no sound")
    refused = compressor("predict", bundle, "--file", tmp_path / "text.wav")
    assert refused.code != 0
    assert "is no WAV file that can be read" in refused.err
    assert str(tmp_path / "text.wav") in refused.err


def test_a_bundle_is_measured(home: Path, compressor: Callable[..., Any]) -> None:
    bundle = home / "out/bundles/fp32-onnxruntime"
    found = compressor("bench", bundle, "--rounds", 2, "--batch-size", 1)
    assert found.code == 0, found.err
    assert "1 x 16000" in found.out
