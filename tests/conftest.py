"""What tests of several folders share: small models, and the environment of a device.

The small transformer is written straight in ONNX: no torch, no export, ready in milliseconds.
"""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from targets.signature import Arrays, Signature, TensorSpec

ROOT = Path(__file__).parents[1]
# The extras of a device that runs on a CPU.
RUNTIMES = ("onnxruntime", "openvino")
VOCABULARY, WIDTH, HEADS, HIDDEN, LABELS = 700, 32, 2, 64, 3


SHARED = {
    r"compressor/devices/|\b(device_environment|project_wheel|published)\b": "device",
    r"compressor/.*\b(finished|mlflow_server)\b": "run",
}
"""What the path and text of a file hold -> group of files that share what takes long to make."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file, or of files that share an expensive fixture, to one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.partition("::")[0])

    return Groups(config, log)


@functools.cache
def _group(path: str) -> str:
    whole = f"{path} {(ROOT / path).read_text(encoding='utf-8')}"
    found = (name for holds, name in SHARED.items() if re.search(holds, whole, re.DOTALL))
    return next(found, path)


def pytest_collection_finish() -> None:
    """Set aside what the imports made: hundreds of thousands of objects that live to the end.

    Every full garbage collection would look through them, and every training makes one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def encoder_signature() -> Signature:
    free = ("batch", "sequence")
    return Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=free)
            for name in ("input_ids", "attention_mask")
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", LABELS)),),
    )


@pytest.fixture
def make_encoder() -> Callable[..., Any]:
    """Build the model; ``outliers`` scales some channels of the activations up."""
    return _make_encoder


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    import onnx

    path = tmp_path / "encoder.onnx"
    onnx.save(_make_encoder(), path)
    return path


@pytest.fixture
def make_feeds() -> Callable[..., Arrays]:
    """Token ids of sequences of different lengths, padded to the longest."""

    def make(batch: int = 4, sequence: int = 12, *, seed: int = 0) -> Arrays:
        generator = np.random.default_rng(seed)
        lengths = generator.integers(2, sequence, batch)
        lengths[0] = sequence
        mask = (np.arange(sequence) < lengths[:, None]).astype(np.int64)
        return {
            "input_ids": generator.integers(1, VOCABULARY, (batch, sequence)) * mask,
            "attention_mask": mask,
        }

    return make


def _make_encoder(*, outliers: float = 1.0, seed: int = 0) -> Any:
    from onnx import TensorProto, checker, helper, numpy_helper

    generator = np.random.default_rng(seed)
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(name: str, *shape: int) -> str:
        return constant(name, generator.normal(0, shape[0] ** -0.5, shape).astype(np.float32))

    def add(kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def linear(tensor: str, name: str, fan_in: int, fan_out: int) -> str:
        product = add("MatMul", tensor, weight(f"{name}_weight", fan_in, fan_out), name=name)
        bias = constant(f"{name}_bias", generator.normal(0, 0.1, fan_out).astype(np.float32))
        return add("Add", product, bias, name=f"{name}_add")

    def norm(tensor: str, name: str) -> str:
        gain = np.ones(WIDTH, np.float32)
        gain[:2] = outliers
        scale = constant(f"{name}_scale", gain)
        shift = constant(f"{name}_shift", np.full(WIDTH, 0.1, np.float32))
        return add("LayerNormalization", tensor, scale, shift, name=name, axis=-1)

    def heads(tensor: str, name: str, order: list[int]) -> str:
        split = add("Reshape", tensor, "head_shape", name=f"{name}_split")
        return add("Transpose", split, name=f"{name}_heads", perm=order)

    constant("head_shape", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    table = constant("table", generator.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32))
    rows = add("Gather", table, "input_ids", name="embed", axis=0)
    # Without this the norm would undo any wrong scale of a row.
    offset = constant("offset", generator.normal(0, 1, WIDTH).astype(np.float32))
    hidden = norm(add("Add", rows, offset, name="shifted"), "norm0")
    query = heads(linear(hidden, "query", WIDTH, WIDTH), "query", [0, 2, 1, 3])
    key = heads(linear(hidden, "key", WIDTH, WIDTH), "key", [0, 2, 3, 1])
    value = heads(linear(hidden, "value", WIDTH, WIDTH), "value", [0, 2, 1, 3])
    mask = add("Cast", "attention_mask", name="mask_float", to=TensorProto.FLOAT)
    mask = add("Sub", mask, constant("one", np.float32(1)), name="mask_minus_one")
    mask = add("Mul", mask, constant("large", np.float32(1e9)), name="mask_large")
    mask = add("Unsqueeze", mask, constant("axes", np.array([1, 2], np.int64)), name="mask_4d")
    scores = add("MatMul", query, key, name="scores")
    scores = add("Add", scores, mask, name="masked")
    mixed = add("MatMul", add("Softmax", scores, name="softmax", axis=-1), value, name="mixed")
    mixed = add("Transpose", mixed, name="merge", perm=[0, 2, 1, 3])
    mixed = add(
        "Reshape", mixed, constant("flat", np.array([0, 0, WIDTH], np.int64)), name="flatten"
    )
    hidden = norm(add("Add", hidden, linear(mixed, "output", WIDTH, WIDTH), name="residual"), "n1")
    wide = add("Relu", linear(hidden, "up", WIDTH, HIDDEN), name="relu")
    down = linear(wide, "down", HIDDEN, WIDTH)
    hidden = norm(add("Add", hidden, down, name="residual2"), "norm2")
    first = add("Gather", hidden, constant("zero", np.int64(0)), name="first", axis=1)
    weight("classifier_weight", LABELS, WIDTH)
    constant("classifier_bias", np.zeros(LABELS, np.float32))
    nodes.append(
        helper.make_node(
            "Gemm",
            [first, "classifier_weight", "classifier_bias"],
            ["logits"],
            name="classifier",
            transB=1,
        )
    )
    shape = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, shape)
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", LABELS])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def make_classifier() -> Callable[..., Any]:
    """Make a random BERT classifier with a WordPiece tokenizer: make_classifier(seed=)."""
    return _make_classifier


def _make_classifier(*, seed: int = 0) -> Any:
    import string

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from compressor.model import TorchModel

    special = {
        f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")
    }
    letters = string.ascii_lowercase
    words = ["who", "where", "when", "is", "the", "river", "king", "battle", "##ed", "##ing"]
    tokens = [*special.values(), *letters, *(f"##{each}" for each in letters), *words]
    tokenizer = Tokenizer(
        models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]")  # noqa: S106  (a token of text)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(list(special.values()))
    labels = ("person", "place", "time")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            initializer_range=0.2,  # else all outputs are near 0 and every comparison passes
        )
        module = BertForSequenceClassification._from_config(config, attn_implementation="eager")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    return TorchModel(module.eval(), wrapped, "text-classification", 32)


class Keys(NamedTuple):
    """Two halves of a key, in files."""

    private: Path
    public: Path


def write_keys(folder: Path, key: Any = None, *, passphrase: str | None = None) -> Keys:
    """Write an elliptic key, or another one, as openssl does."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    keys = Keys(folder / "private.pem", folder / "public.pem")
    locked = (
        serialization.BestAvailableEncryption(passphrase.encode())
        if passphrase
        else serialization.NoEncryption()
    )
    form = serialization.PrivateFormat.PKCS8
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    keys.private.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, locked))
    keys.public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, spki))
    return keys


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """A key pair for signatures."""
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def project_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy, because a build writes beside its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in ("compressor", "targets"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    # With the setuptools of this environment and no index: the source is a path, never a name.
    _pip("wheel", "--no-deps", "--wheel-dir", folder, "--no-build-isolation", "--no-index", source)
    [built] = folder.glob("compressor-*.whl")
    return built


@pytest.fixture(scope="session")
def device_wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the wheels of all that a device needs besides ours, whatever its runtime.

    They are made of what is installed here. So no index is asked, and a device gets the versions
    that everything else is tested with.
    """
    folder = tmp_path_factory.mktemp("wheels")
    names = set(_needed(Requirement(f"compressor[{','.join(RUNTIMES)}]"), set()))
    for name in sorted(names - {"compressor"}):
        _make_wheel(importlib.metadata.distribution(name), folder)
    yield folder
    shutil.rmtree(folder)  # they are large


def _needed(requirement: Requirement, seen: set[str]) -> Iterator[str]:
    """The distributions that an installation of this one brings."""
    if str(requirement) in seen:
        return
    seen.add(str(requirement))
    yield canonicalize_name(requirement.name)
    for line in importlib.metadata.requires(requirement.name) or ():
        found = Requirement(line)
        wanted = [{"extra": extra} for extra in ("", *requirement.extras)]
        if found.marker is None or any(found.marker.evaluate(each) for each in wanted):
            yield from _needed(found, seen)


def _make_wheel(distribution: importlib.metadata.Distribution, folder: Path) -> None:
    """Pack an installed distribution again, without what its installation added."""
    files = distribution.files or []
    info = next(file.parts[0] for file in files if file.name == "METADATA")
    tags = re.findall(r"^Tag: (.+)$", distribution.read_text("WHEEL") or "", re.MULTILINE)
    assert tags, f"{distribution.name} was not installed from a wheel"
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    tag = "-".join(".".join(dict.fromkeys(part)) for part in parts)
    wheel = folder / f"{info.removesuffix('.dist-info')}-{tag}.whl"
    added = ("INSTALLER", "REQUESTED", "direct_url.json", "RECORD")
    kept = []
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in files:
            # Scripts lie outside, and are made anew of the entry points.
            if ".." in file.parts or file.suffix == ".pyc" or file.name in added:
                continue
            archive.write(str(file.locate()), file.as_posix())
            kept.append(f"{file.as_posix()},,\n")
        archive.writestr(f"{info}/RECORD", "".join([*kept, f"{info}/RECORD,,\n"]))


@pytest.fixture(scope="session")
def make_environment(
    project_wheel: Path, device_wheels: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The ``bin`` folder of a fresh environment with the wheel and one runtime."""

    @functools.cache
    def make(runtime: str) -> Path:
        folder = tmp_path_factory.mktemp("device") / "env"
        venv.create(folder)
        # Bytecode of all that is there would take longer than the installation.
        options = ("--no-compile", "--no-index", "--find-links", device_wheels)
        python = folder / "bin" / "python"
        _pip("--python", python, "install", *options, f"{project_wheel}[{runtime}]")
        return folder / "bin"

    return make


@pytest.fixture(scope="session")
def device_environment(make_environment: Callable[[str], Path]) -> Path:
    """The ``bin`` folder of a fresh environment with the wheel and ONNX Runtime."""
    return make_environment("onnxruntime")


def _pip(*arguments: str | Path) -> None:
    """Run pip outside of the checkout, with nothing of this environment leaking in."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(each) for each in (sys.executable, "-m", "pip", *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def make_small_bundle(
    make_classifier: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Bundles of a small classifier by target, made by the build half."""
    from compressor.export import export_onnx
    from compressor.lowering import lower
    from compressor.model import OnnxModel
    from compressor.store import RunStore
    from compressor.tasks import get_task
    from targets import registry

    folder = tmp_path_factory.mktemp("bundle")
    model = make_classifier()
    signature = get_task(model.task).signature(model)
    store = RunStore(folder / "store")

    def keep(files: Path, work: Path) -> dict[str, Any]:
        export_onnx(model, signature, files / "model.onnx")
        model.processor.save_pretrained(files)
        ranges = {"batch": (1, 1, 8), "sequence": (1, 16, 32)}
        OnnxModel(files, signature, "fp32", model.task, model.labels, 32, ranges).save(files)
        return {"form": "onnx", "precision": "fp32"}

    step = store.step("model", {}, keep)

    @functools.cache
    def make(target: str) -> Path:
        opened = registry.get(target)
        made = lower("small", "candidate", opened, [step], store=store, hand_over=folder / target)
        assert made.bundle is not None, made.reason
        return made.bundle.folder

    return make


@pytest.fixture(scope="session")
def small_bundle(make_small_bundle: Callable[[str], Path]) -> Path:
    """A bundle of a small classifier for ONNX Runtime."""
    return make_small_bundle("onnxruntime")
