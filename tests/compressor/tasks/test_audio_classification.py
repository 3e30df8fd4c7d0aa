"""Audio classification: what is read from a checkpoint, and the batches that are made of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from compressor.architecture import Architecture
from compressor.checkpoint import check_checkpoint
from compressor.errors import CheckpointError
from compressor.export import export_onnx
from compressor.model import TorchModel
from compressor.parity import measure_parity
from compressor.tasks import get_task, infer_task
from compressor.tasks.feature_extractor import read_extractor, write_extractor
from compressor.training.augmentation import AudioNoise, Material
from compressor.training.batches import lengths
from compressor.training.finetuning import new_classifier
from compressor.training.settings import DistillSettings
from targets.preprocessing import FIXED_SIZE, AudioPreprocessing
from targets.preprocessing.audio import LogMel

TASK = get_task("audio-classification")
RATE = 16_000
LABELS = ("no", "yes", "perhaps")


def wav2vec2_config(**changes: Any) -> Wav2Vec2Config:
    return Wav2Vec2Config(
        **{
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "conv_dim": (16, 16),
            "conv_kernel": (10, 8),
            "conv_stride": (5, 8),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "classifier_proj_size": 16,
            "initializer_range": 0.2,
            **changes,
        }
    )


def whisper_config() -> WhisperConfig:
    return WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=100,
        max_source_positions=150,
        classifier_proj_size=16,
        init_std=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def save_wav2vec2(folder: Path) -> None:
    Wav2Vec2Model(wav2vec2_config()).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)


def save_whisper(folder: Path) -> None:
    WhisperForConditionalGeneration(whisper_config()).save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder)


SAVERS: dict[str, Callable[[Path], None]] = {"wav2vec2": save_wav2vec2, "whisper": save_whisper}


@pytest.fixture(params=SAVERS)
def encoder(request: Any, tmp_path: Path) -> Path:
    """A checkpoint without a head."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SAVERS[request.param](tmp_path)
    return tmp_path


def noise(count: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-8000, 8000, count).astype(np.int16)


# How recordings are prepared


@pytest.mark.parametrize(
    "processor",
    [
        AudioPreprocessing(max_samples=RATE, min_samples=400, attention_mask=True),
        AudioPreprocessing(max_samples=RATE, normalize=False, sampling_rate=8000),
        AudioPreprocessing(
            max_samples=2 * RATE, normalize=False, log_mel=LogMel(num_mel=128, window=2 * RATE)
        ),
    ],
    ids=["mask", "plain", "spectrogram"],
)
def test_a_processor_is_written_as_transformers_reads_it(
    tmp_path: Path, processor: AudioPreprocessing
) -> None:
    from transformers import AutoFeatureExtractor

    write_extractor(processor, tmp_path)
    assert read_extractor(tmp_path) == processor
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert extractor.sampling_rate == processor.sampling_rate
    if processor.log_mel is None:
        assert isinstance(extractor, Wav2Vec2FeatureExtractor)
        assert extractor.do_normalize == processor.normalize
        assert extractor.return_attention_mask == processor.attention_mask
    else:
        assert isinstance(extractor, WhisperFeatureExtractor)
        assert extractor.n_samples == processor.log_mel.window
        assert extractor.feature_size == processor.log_mel.num_mel


def test_what_transformers_writes_is_read(encoder: Path) -> None:
    found = read_extractor(encoder)
    if found.log_mel is None:
        assert found == AudioPreprocessing(max_samples=30 * RATE, min_samples=45)
    else:
        assert found.max_samples == found.log_mel.window == 3 * RATE
        assert found.log_mel.num_frames == 300
        assert not found.normalize


def test_a_file_that_says_to_normalize_changes_no_spectrogram(tmp_path: Path) -> None:
    """As in transformers, where the argument of a call alone does."""
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_normalize": True}))
    sound = noise(RATE).astype(np.float32) / 2**15
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path)
    first, second = (
        extractor(sound, sampling_rate=RATE, **more)["input_features"]
        for more in ({}, {"do_normalize": False})
    )
    np.testing.assert_array_equal(first, second)
    assert not read_extractor(tmp_path).normalize


def test_the_shortest_input_gives_one_state(tmp_path: Path) -> None:
    save_wav2vec2(tmp_path)
    network = Wav2Vec2Model.from_pretrained(tmp_path).eval()
    least = read_extractor(tmp_path).min_samples
    assert network(torch.zeros(1, least)).last_hidden_state.shape[1] == 1
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, least - 1))


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({"feature_extractor_type": "ASTFeatureExtractor"}, "not a supported feature extractor"),
        ({"padding_value": 1.0}, "padding_value is 1.0"),
        ({"padding_side": "left"}, "padding_side is 'left'"),
        ({"feature_size": 2}, "feature_size is 2"),
        ({"sampling_rate": 10}, "greater than or equal to 1000"),
    ],
)
def test_another_preparation_is_refused(
    tmp_path: Path, changes: dict[str, Any], given: str
) -> None:
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="is not supported") as caught:
        TASK.check_processor(tmp_path)
    assert caught.value.where == str(path)
    assert given in str(caught.value.given)
    assert "Wav2Vec2FeatureExtractor" in str(caught.value.fix)


def test_a_processor_that_writes_its_parts_into_one_file(tmp_path: Path) -> None:
    """As that of Whisper does, of a tokenizer and an extractor."""
    WhisperFeatureExtractor(feature_size=128).save_pretrained(tmp_path)
    alone = read_extractor(tmp_path)
    extractor = WhisperFeatureExtractor.from_pretrained(tmp_path)
    tokenizer = WhisperTokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    (tmp_path / "both").mkdir()
    WhisperProcessor(extractor, tokenizer).save_pretrained(tmp_path / "both")
    assert not (tmp_path / "both" / "preprocessor_config.json").exists()
    assert read_extractor(tmp_path / "both") == alone
    assert alone.log_mel is not None
    assert alone.log_mel.num_mel == 128


def test_a_missing_and_a_damaged_preparation_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not say how recordings are prepared") as caught:
        TASK.load_processor(tmp_path)
    assert "AutoFeatureExtractor" in str(caught.value.fix)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TASK.load_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is not supported"):
        TASK.load_processor(tmp_path)


# Whose checkpoint it is


def bert(folder: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=16, vocab_size=20)
    BertForSequenceClassification(config).save_pretrained(folder)


def wav2vec2_classifier(folder: Path) -> None:
    Wav2Vec2ForSequenceClassification(wav2vec2_config()).save_pretrained(folder)


def whisper_classifier(folder: Path) -> None:
    WhisperForAudioClassification(whisper_config()).save_pretrained(folder)


@pytest.mark.parametrize(
    ("save", "task"),
    [
        (bert, "text-classification"),
        (wav2vec2_classifier, "audio-classification"),
        (whisper_classifier, "audio-classification"),
        (save_wav2vec2, "audio-classification"),
        (save_whisper, "automatic-speech-recognition"),
    ],
)
def test_the_task_follows_from_what_a_checkpoint_reads(
    tmp_path: Path, save: Callable[[Path], None], task: str
) -> None:
    save(tmp_path)
    assert infer_task(tmp_path) == task


@pytest.mark.parametrize(
    ("save", "task", "given"),
    [
        (bert, "audio-classification", "BertForSequenceClassification, which reads no sound"),
        (
            wav2vec2_classifier,
            "text-classification",
            "Wav2Vec2ForSequenceClassification, which reads sound",
        ),
    ],
)
def test_a_checkpoint_of_another_kind_of_input_is_refused(
    tmp_path: Path, save: Callable[[Path], None], task: str, given: str
) -> None:
    save(tmp_path)
    wanted = get_task(task)
    with pytest.raises(CheckpointError, match="does not read the inputs of this task") as caught:
        check_checkpoint(tmp_path, head=wanted.heads, kind=wanted.kind)
    assert caught.value.given == given


def test_a_checkpoint_without_a_head_is_refused(encoder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no head for this task \(AudioClassification\)"):
        check_checkpoint(encoder, head=TASK.heads, kind="audio")


# The network


def classifier(encoder: Path, **settings: Any) -> TorchModel:
    return new_classifier(encoder, LABELS, task=TASK.name, **settings)


def test_a_whisper_that_reads_all_of_its_layers_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "whisper", "use_weighted_layer_sum": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="reads all layers of Whisper's encoder") as caught:
        TASK.check_network(tmp_path)
    assert str(caught.value.where).endswith("use_weighted_layer_sum")


def test_the_encoder_keeps_its_weights_under_a_new_head(encoder: Path) -> None:
    model = classifier(encoder)
    from safetensors.torch import load_file

    stored = load_file(encoder / "model.safetensors")
    state = model.module.state_dict()
    same = [
        name
        for name, value in state.items()
        for prefix in ("", "model.")
        if torch.equal(stored.get(prefix + name.removeprefix("wav2vec2."), torch.zeros(0)), value)
    ]
    rest = [name for name in state if name not in same]
    assert {name.split(".")[0] for name in rest} == {"projector", "classifier"}


def test_nothing_is_left_out_at_random(encoder: Path) -> None:
    module = classifier(encoder).module.train()
    config: Any = module.config
    assert not getattr(config, "layerdrop", 0.0)
    assert not config.apply_spec_augment
    example = TASK.example(module, read_extractor(encoder))
    for each in module.modules():
        if isinstance(each, torch.nn.Dropout):
            each.p = 0.0
    for part in module.modules():
        for name in ("dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    torch.testing.assert_close(module(**example).logits, module(**example).logits)


def test_the_architecture_is_that_of_the_encoder(encoder: Path, tmp_path: Path) -> None:
    model = classifier(encoder)
    assert Architecture.of(model.module).describe() == "2 layers x 4 heads x 64 FFN, hidden 32"
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    assert Architecture.read(tmp_path / "saved") == Architecture.of(model.module)


def test_whisper_is_cut_to_a_shorter_window(tmp_path: Path) -> None:
    save_whisper(tmp_path)
    whole, cut = classifier(tmp_path), classifier(tmp_path, max_length=RATE)
    assert (whole.max_length, cut.max_length) == (3 * RATE, RATE)
    tables = [each.module.encoder.embed_positions.weight for each in (whole, cut)]  # type: ignore[union-attr]
    torch.testing.assert_close(tables[1], tables[0][:50])  # type: ignore[index]
    batch = TASK.collate(cut, TASK.encode(cut, [noise(5 * RATE)]))
    assert batch["input_features"].shape == (1, 80, 100)
    cut.save(tmp_path / "cut")
    again = TorchModel.load(tmp_path / "cut")
    feeds = {name: torch.from_numpy(value) for name, value in batch.items()}
    torch.testing.assert_close(again.module(**feeds).logits, cut.module(**feeds).logits)


@pytest.mark.parametrize(
    ("max_length", "fix"), [(1000, 16_000), (40_000, 32_000), (64_000, 48_000)]
)
def test_a_window_of_no_whole_seconds_is_refused(tmp_path: Path, max_length: int, fix: int) -> None:
    save_whisper(tmp_path)
    with pytest.raises(CheckpointError, match="takes whole seconds only") as caught:
        classifier(tmp_path, max_length=max_length)
    assert caught.value.where == "max_length"
    assert str(max_length) in str(caught.value.given)
    assert caught.value.fix == f"use {fix}"


def test_waveforms_are_cut_anywhere(tmp_path: Path) -> None:
    save_wav2vec2(tmp_path)
    model = classifier(tmp_path, max_length=12_345)
    assert model.max_length == 12_345
    [row] = TASK.encode(model, [noise(20_000)])
    assert TASK.length(row) == 12_345
    assert TASK.num_cut(model, [noise(20_000), noise(12_345)]) == 1
    assert TASK.preprocessing(tmp_path, 999).max_samples == 999


def test_rows_of_spectrograms_have_no_lengths(encoder: Path) -> None:
    model = classifier(encoder)
    rows = TASK.encode(model, [noise(3000), noise(5000)])
    wave = model.processor.log_mel is None
    assert lengths(model, [dict(row) for row in rows]) == (
        [3000, 5000] if wave else [FIXED_SIZE] * 2
    )


@pytest.mark.parametrize("mask", [True, False])
def test_every_kind_of_network_is_exported_as_it_is(
    encoder: Path, tmp_path: Path, mask: bool
) -> None:
    model = classifier(encoder, max_length=RATE)
    if model.processor.log_mel is None:
        processor = model.processor.model_copy(update={"attention_mask": mask})
        model = TorchModel(model.module, processor, model.task, model.max_length)
    elif mask:
        pytest.skip("a spectrogram has no mask")
    signature = TASK.signature(model)
    export_onnx(model, signature, tmp_path / "model.onnx")
    inputs = [noise(count, count) for count in (3000, 200, 16_000, 9000, 20)]
    parity = measure_parity(model, tmp_path / "model.onnx", inputs)
    assert parity.num_batches == 6
    assert parity.max_relative_difference < 1e-4
    # It was the weights' computed form that was written, and the network still has the other.
    assert [name for name, _ in model.module.named_parameters() if "parametrizations" in name] or (
        model.processor.log_mel is not None
    )


def test_a_student_hears_what_the_model_hears(encoder: Path, tmp_path: Path) -> None:
    model = classifier(encoder, max_length=RATE)
    assert TASK.adopt(classifier(encoder, max_length=RATE), model) == model.processor
    other = tmp_path / "other"
    SAVERS["whisper" if model.processor.log_mel is None else "wav2vec2"](other)
    with pytest.raises(CheckpointError, match="in a different form from the model") as caught:
        TASK.adopt(classifier(other, max_length=RATE), model)
    given = {"waveforms at 16000 Hz", "spectrograms of 80 bands and 100 frames at 16000 Hz"}
    assert set(str(caught.value.given).split(" instead of ")) == given


# More recordings for the teacher


def noisy(**settings: Any) -> AudioNoise:
    rows = [{"samples": noise(1000 + 100 * index, index), "labels": 0} for index in range(4)]
    return AudioNoise(rows, **{"share": 0.2, "mixup": 0.5, "copies": None, "seed": 0, **settings})


def test_noise_is_a_pure_function_that_keeps_lengths_and_labels() -> None:
    made = noisy()
    rows = [dict(row) for row in made.rows]
    for index, row in enumerate(rows):
        changed = made(row, index, 1 - index % 2)
        assert changed["noisy"] == 1
        assert changed["labels"] == 0
        assert changed["samples"].dtype == np.int16
        assert len(changed["samples"]) == len(row["samples"])
        assert not np.array_equal(changed["samples"], row["samples"])
        np.testing.assert_array_equal(
            changed["samples"], noisy()(row, index, 1 - index % 2)["samples"]
        )


def test_without_a_background_a_recording_is_moved_and_made_louder_or_softer() -> None:
    made = noisy(mixup=0.0)
    row = {"samples": noise(1000)}
    for seed in range(20):
        changed = made.change(row, 0, np.random.default_rng(seed))["samples"].astype(float)
        original = row["samples"].astype(float)
        moves = range(-200, 201)
        best = max(moves, key=lambda move: abs(np.dot(np.roll(original, move), changed)))
        kept = slice(max(best, 0), 1000 + min(best, 0))
        moved = np.roll(original, best)[kept]
        gain = np.dot(moved, changed[kept]) / np.dot(moved, moved)
        assert 0.5 <= gain <= 2
        np.testing.assert_allclose(changed[kept], np.clip(gain * moved, -32768, 32767), atol=2)


@pytest.mark.parametrize("loudness", [0.05, 1.0])
def test_a_background_is_softer_than_the_recording_however_loud_that_is(loudness: float) -> None:
    original = (noise(4000, seed=9) * loudness).astype(np.int16)
    wide = original.astype(float)
    found = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        made = noisy(mixup=1.0, share=1e-6).change({"samples": original}, 0, generator)
        changed = made["samples"].astype(float)
        gain = np.dot(changed, wide) / np.dot(wide, wide)
        background = changed - gain * wide
        found.append(10 * np.log10(np.square(background).mean() / np.square(gain * wide).mean()))
    assert min(found) > -26
    assert max(found) < -9
    assert max(found) - min(found) > 8


def test_silence_has_no_background() -> None:
    row = {"samples": np.zeros(1000, np.int16)}
    assert not noisy(mixup=1.0).change(row, 0, np.random.default_rng(0))["samples"].any()


def test_no_share_means_no_noise() -> None:
    assert not noisy(share=0.0).active
    model = TorchModel(torch.nn.Identity(), None, TASK.name, RATE)
    made = TASK.noise(
        model, Material([{"samples": noise(100)}]), DistillSettings(augmentation=0.1), 3
    )
    assert made.active
