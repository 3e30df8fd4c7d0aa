"""Tiny models and two tiny tasks: which word a text begins with, and of what colour an image is."""

from __future__ import annotations

import csv
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ViTConfig,
)

from compressor.data import Split, Splits
from compressor.model import TorchModel
from compressor.report.files import read_report
from compressor.report.schema import Row
from targets.networks import efficientnet_lite
from targets.preprocessing import ImagePreprocessing

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["who", "where", "when", *(f"w{number}" for number in range(21))]
LABELS = ("person", "place", "time")


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_model(
    *, num_layers: int = 2, hidden_size: int = 32, seed: int = 0, words: list[str] = WORDS
) -> TorchModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(SPECIAL) + len(words),
            hidden_size=hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=32,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={name: index for index, name in enumerate(LABELS)},
            initializer_range=0.2,
        )
        module = BertForSequenceClassification._from_config(config, attn_implementation="eager")
    return TorchModel(module.eval(), make_tokenizer(words), "text-classification", 32)


def make_split(num_rows: int, seed: int) -> Split:
    generator = random.Random(seed)
    labels = [generator.randrange(3) for _ in range(num_rows)]
    texts = tuple(
        " ".join([WORDS[label], *generator.choices(WORDS[3:], k=generator.randint(2, 9))])
        for label in labels
    )
    return Split(texts, np.array(labels, dtype=np.int64))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second thread, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def word_splits() -> Splits:
    return Splits(make_split(96, 1), make_split(48, 2), make_split(48, 3), LABELS)


@pytest.fixture(scope="session")
def word_model() -> Callable[..., TorchModel]:
    """Makes a random classifier: word_model(num_layers=, hidden_size=, seed=, words=)."""
    return make_model


@pytest.fixture
def vocabulary() -> list[str]:
    return list(WORDS)


COLOURS = ("blue", "green", "red")
IMAGE_SIZE = 16
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "initializer_range": 0.1,
}
_STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}
VISION: dict[str, Callable[..., PretrainedConfig]] = {
    "vit": lambda **more: ViTConfig(**_VIT, intermediate_size=64, **more),
    "deit": lambda **more: DeiTConfig(**_VIT, intermediate_size=64, **more),
    "dinov2": lambda **more: Dinov2Config(**_VIT, mlp_ratio=2, **more),
    "resnet": lambda **more: ResNetConfig(**_STAGES, layer_type="basic", **more),
    "convnext": lambda **more: ConvNextConfig(
        num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], patch_size=2, **more
    ),
    "efficientnet-lite": lambda **more: efficientnet_lite.EfficientNetLiteConfig(
        stem_channels=16,
        hidden_dim=48,
        kernel_sizes=(3, 5, 3),
        strides=(1, 2, 1),
        expand_ratios=(1, 3, 3),
        out_channels=(16, 24, 32),
        num_block_repeats=(1, 2, 1),
        **more,
    ),
}
"""Family -> its config, of a few thousand weights."""


def make_vision(
    family: str, *, seed: int = 0, size: int = IMAGE_SIZE, labels: Sequence[str] = COLOURS
) -> TorchModel:
    """A random classifier of images."""
    efficientnet_lite.register()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = VISION[family](
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            architectures=[],
        )
        module = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    processor = ImagePreprocessing(
        height=size, width=size, shortest_edge=size + 2, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    return TorchModel(module.eval(), processor, "image-classification", 0)


def make_image(label: int, seed: int) -> Image.Image:
    """Noise with a tint, 20 to 29 pixels wide and high."""
    generator = np.random.default_rng((label, seed))
    pixels = generator.integers(0, 200, size=(*generator.integers(20, 30, size=2), 3))
    pixels[..., 2 - label] += 55
    return Image.fromarray(pixels.astype(np.uint8))


def make_image_split(num_rows: int, seed: int) -> Split:
    """Images as the bytes of their files."""
    labels = [index % len(COLOURS) for index in range(num_rows)]
    inputs = []
    for index, label in enumerate(labels):
        stream = io.BytesIO()
        make_image(label, 1000 * seed + index).save(stream, "PNG")
        inputs.append(stream.getvalue())
    return Split(tuple(inputs), np.array(labels, dtype=np.int64))


def write_images(folder: Path, count: int, seed: int) -> None:
    """A folder of images for each colour."""
    for index in range(count):
        label = index % len(COLOURS)
        path = folder / COLOURS[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(label, 1000 * seed + index).save(path)


@pytest.fixture(scope="session")
def vision_model() -> Callable[..., TorchModel]:
    """Makes a random classifier of images: vision_model("vit", seed=, size=, labels=)."""
    return make_vision


@pytest.fixture(scope="session")
def colour_image() -> Callable[[int, int], Image.Image]:
    """Makes an image of a class: colour_image(label, seed)."""
    return make_image


def make_image_splits() -> Splits:
    """Images of all colours."""
    return Splits(
        make_image_split(96, 1), make_image_split(36, 2), make_image_split(36, 3), COLOURS
    )


@pytest.fixture(scope="session")
def image_splits() -> Splits:
    return make_image_splits()


NOUNS = ["cat", "dog", "house", "tree", "river", "stone", "music", "paper", "window", "garden"]
QUESTIONS = WORDS[:3]


def make_wordpiece() -> PreTrainedTokenizerFast:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    unused = [f"unused{number}" for number in range(40)]
    words = [*SPECIAL, *pieces, *QUESTIONS, *NOUNS, *unused]
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokenizer = Tokenizer(
        models.WordPiece({word: index for index, word in enumerate(words)}, unk_token=names["unk"])
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": token for name, token in names.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_rows(num_rows: int, seed: int, *, wrong: int = 0) -> list[tuple[str, str]]:
    """Texts whose first word tells the label; every ``wrong``-th label is wrong."""
    generator = random.Random(seed)
    rows = []
    for index in range(num_rows):
        text = [QUESTIONS[index % 3], *generator.choices(NOUNS, k=generator.randint(2, 9))]
        label = index + 1 if wrong and index % wrong == 0 else index
        rows.append((" ".join(text), LABELS[label % 3]))
    return rows


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *rows])


RECIPE = """
model: model
data: {train: train.csv, validation: validation.csv, test: test.csv}
passes:
  - {pass: trim_vocabulary, keep_first: 0}
  - {pass: prune, ratio: 0.5, steps: 1, recovery: null}
  - {pass: distill, epochs: 3, batch_size: 16}
  - export
variants:
  fp32: []
  int8: [{pass: quantize, method: static, num_samples: 32}]
  int8-dynamic: [{pass: quantize, method: dynamic}]
targets: [onnxruntime, openvino, tensorrt_rtx, tensorrt, pytorch]
budget: {max_accuracy_drop: 90}
benchmark: {rounds: 2, min_round_s: 0.001, pause_s: 0, sequence_length: 16, batch_sizes: [1]}
output: out
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has: a fine-tuned checkpoint, data and a recipe. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("home")
    write_home(folder)
    return folder


def write_home(folder: Path) -> None:
    """Write the checkpoint, the data and the recipe; benchmarks/soak uses them too."""
    for name, rows in (
        ("train", make_rows(120, 1)),
        ("validation", make_rows(36, 2, wrong=9)),
        ("test", make_rows(48, 3, wrong=7)),
    ):
        write_rows(folder / f"{name}.csv", rows)
    tokenizer = make_wordpiece()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=32,
                id2label=dict(enumerate(LABELS)),
                label2id={name: index for index, name in enumerate(LABELS)},
                initializer_range=0.1,
            )
        )
        fit(module, tokenizer, make_rows(120, 1))
    module.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def fit(
    module: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[tuple[str, str]],
) -> None:
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for step in range(30):
        batch = random.Random(step).sample(rows, 32)
        encoded = tokenizer(
            [text for text, _ in batch],
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        labels = torch.tensor([LABELS.index(label) for _, label in batch])
        module(**encoded, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: object) -> Outcome:
    from compressor.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def compressor() -> Callable[..., Outcome]:
    """Runs a command in this process: compressor("run", recipe, "--store", store)."""
    return call


@dataclass(frozen=True)
class Finished:
    """A run of the whole recipe."""

    outcome: Outcome
    output: Path
    store: Path

    @property
    def rows(self) -> list[Row]:
        """Those with a bundle; the run has to have met its budget."""
        assert self.outcome.code == 0, self.outcome.out + self.outcome.err
        return [each for each in read_report(self.output).rows if each.bundle is not None]

    @property
    def bundles(self) -> list[Path]:
        """All bundles, by name."""
        return sorted((self.output / "bundles").iterdir())


@pytest.fixture(scope="session")
def finished(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run of the whole recipe; later runs may use its store, none may damage it."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ("--output", folder / "out", "--store", folder / "store")
    outcome = call("run", home / "recipe.yaml", *arguments)
    return Finished(outcome, folder / "out", folder / "store")


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes one of `tests.compressor.homes`, once: a folder with data and a checkpoint, `model`."""
    from tests.compressor.homes import HOMES

    @functools.cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        home = HOMES[name]
        home.write(folder)
        if home.finetune:
            options = ("--output", folder / "model", "--store", folder / "store")
            more = ("--task", home.task, *home.finetune)
            outcome = call("finetune", folder / "start", folder, *options, *more)
            assert outcome.code == 0, outcome.err
        return folder

    return make


@pytest.fixture(scope="module")
def tuned(request: pytest.FixtureRequest, make_home: Callable[[str], Path]) -> Path:
    """The home that the test module names as HOME, with its RECIPE."""
    folder = make_home(request.module.HOME)
    (folder / "recipe.yaml").write_text(request.module.RECIPE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tuned: Path) -> Finished:
    """A run of RECIPE there."""
    outcome = call("run", tuned / "recipe.yaml", "--store", tuned / "store")
    return Finished(outcome, tuned / "out", tuned / "store")
