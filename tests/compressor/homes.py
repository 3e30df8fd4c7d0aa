"""What users of each task have: data, and a tiny checkpoint that is theirs or to be fine-tuned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.compressor import audio, detection, segmentation, series, tagged, videos
from tests.compressor.conftest import make_rows, make_vision, write_home, write_images, write_rows
from tests.compressor.decoders import write_decoder
from tests.compressor.questions import SQUAD, save_network
from tests.compressor.tasks.test_text_embedding import save_encoder
from tests.compressor.writers import write_writer


@dataclass(frozen=True)
class Home:
    """One user.

    Attributes:
        task: What the model is for.
        write: Writes data into a folder, and a checkpoint: `start` where it is to be fine-tuned,
            else `model`.
        finetune: Options of the command that makes `model` of `start`; none where there is one.
        run: Options of the run that the checkpoint does not tell.
        text: What `predict` is given, where it reads texts.
        files: A pattern of files in the folder that it is given, where it reads files.
    """

    task: str
    write: Callable[[Path], None]
    finetune: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    text: str = ""
    files: str = ""

    def asked(self, folder: Path) -> tuple[str, ...]:
        """What `predict` is given: one input."""
        if self.text:
            return ("--text", self.text)
        return ("--file", str(min(folder.glob(self.files))))


def _settings(**values: object) -> tuple[str, ...]:
    return tuple(part for name, value in values.items() for part in ("--set", f"{name}={value}"))


def _write_tagged(folder: Path) -> None:
    for seed, (name, count) in enumerate((("train", 160), ("validation", 40), ("test", 60))):
        tagged.write_sentences(folder / f"{name}.jsonl", tagged.make_sentences(count, seed))
    tagged.write_encoder(folder / "start")


def _write_questions(folder: Path) -> None:
    save_network(folder / "start", head="Model", max_position_embeddings=256)
    for name in ("train", "test"):
        shutil.copyfile(SQUAD, folder / f"{name}.json")


def _write_texts(folder: Path) -> None:
    save_encoder(folder / "model")
    for seed, (name, count) in enumerate((("train", 60), ("test", 40))):
        write_rows(folder / f"{name}.csv", make_rows(count, seed))


def _write_images(family: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        make_vision(family, labels=("x", "y")).save(folder / "start")
        for seed, (split, count) in enumerate({"train": 60, "validation": 18, "test": 24}.items()):
            write_images(folder / split, count, seed)

    return write


def _write_shapes(folder: Path) -> None:
    for seed, (name, count) in enumerate((("train", 48), ("validation", 12), ("test", 16))):
        segmentation.write_shapes(folder, name, count, seed)
    segmentation.write_encoder(folder / "start")


def _write_scenes(folder: Path) -> None:
    for seed, (name, count) in enumerate((("train", 256), ("validation", 24), ("test", 32)), 1):
        detection.write_scenes(folder, name, count, seed)
    detection.write_encoder(folder / "start", patch_size=8, hidden_size=48, num_detection_tokens=3)


def _write_tones(family: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        audio.write_tones(folder)
        audio.write_network(folder / "start", family)

    return write


def _write_signals(folder: Path) -> None:
    series.write_encoder(folder / "start")
    for seed, (name, count) in enumerate(
        {"train.jsonl": 96, "validation.csv": 24, "test.jsonl": 40}.items()
    ):
        series.write_split(folder / name, count, seed)


def _write_videos(folder: Path) -> None:
    videos.write_encoder(folder / "start")
    for seed, (name, count) in enumerate({"train": 96, "validation": 24, "test": 40}.items()):
        videos.write_videos(folder / name, count, seed)


_CLASSIFIER = _settings(epochs=8, learning_rate=3e-3, batch_size=16)
_SOUNDS = ("--max-length", "16000", *_settings(epochs=1, batch_size=8))
_SHORT = _settings(**{"benchmark.sequence_length": 16})
_SECOND = _settings(**{"benchmark.sequence_length": 8000})
HOMES: dict[str, Home] = {
    "text": Home("text-classification", write_home, run=_SHORT, text="who house"),
    "words": Home(
        "token-classification",
        _write_tagged,
        _settings(epochs=16, learning_rate=3e-3, batch_size=16),
        _SHORT,
        text="who house, cat",
    ),
    "questions": Home(
        "question-answering",
        _write_questions,
        _settings(epochs=60, batch_size=4, learning_rate=0.005),
        _SHORT,
        text=json.dumps({"question": "who sings", "context": "birds sing at dawn"}),
    ),
    "embeddings": Home(
        "text-embedding",
        _write_texts,
        run=("--set", "task=text-embedding", *_SHORT),
        text="who house",
    ),
    "generation": Home("text-generation", write_decoder, run=_SHORT, text="w1 w2 w3"),
    "translation": Home(
        "translation", lambda folder: write_writer(folder, "bart"), run=_SHORT, text="w1 w2"
    ),
    "speech": Home("automatic-speech-recognition", write_writer, run=_SECOND, files="sounds/test*"),
    "vit": Home("image-classification", _write_images("vit"), _CLASSIFIER, files="test/red/*"),
    "resnet": Home(
        "image-classification", _write_images("resnet"), _CLASSIFIER, files="test/red/*"
    ),
    "segmentation": Home(
        "semantic-segmentation",
        _write_shapes,
        _settings(epochs=12, learning_rate=5e-3, batch_size=12),
        files="test/0.png",
    ),
    "detection": Home(
        "object-detection",
        _write_scenes,
        _settings(epochs=20, learning_rate=3e-3, batch_size=16),
        files="test/0.png",
    ),
    "wav2vec2": Home(
        "audio-classification", _write_tones("wav2vec2"), _SOUNDS, _SECOND, files="test/low/*"
    ),
    "whisper": Home(
        "audio-classification", _write_tones("whisper"), _SOUNDS, _SECOND, files="test/low/*"
    ),
    "series": Home("time-series-classification", _write_signals, _CLASSIFIER, files="test-0.npy"),
    "videos": Home(
        "video-classification",
        _write_videos,
        _settings(epochs=10, learning_rate=3e-3, batch_size=16),
        files="test/left/*.npy",
    ),
}
"""By task, and by family where networks of several kinds are of one."""
