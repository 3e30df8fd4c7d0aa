"""The eager PyTorch target answers as the checkpoint it copied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from targets import Arrays, Bundle, Manifest, Session, Signature, Source, TensorSpec
from targets.bundle import SCHEMA_VERSION
from targets.errors import InputError, MissingLibraryError, ToolkitError, UnsupportedModelError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import TextPreprocessing
from targets.runtimes.pytorch import PyTorch
from targets.worker_client import Worker

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAMES = ("input_ids", "attention_mask", "token_type_ids")
SIGNATURE = Signature(
    inputs=tuple(TensorSpec(name=name, dtype="int64", shape=("N", "L")) for name in NAMES),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=("N", 2)),),
)
ROWS = [[2, 5, 6, 7, 3], [2, 9, 3], [2, 10, 11, 3]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=2,
    )
    folder = tmp_path / "checkpoint"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path, write_tokenizer: Callable[[Path], None]) -> Bundle:
    folder = tmp_path / "bundle"
    folder.mkdir()
    source = Source(checkpoint, SIGNATURE)
    PyTorch().requires(source)
    lowered = PyTorch().lower(source, folder)
    write_tokenizer(folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="small",
        task="text-classification",
        target="pytorch",
        target_settings={},
        precision="fp32",
        signature=SIGNATURE,
        model=lowered.model,
        labels=("no", "yes"),
        preprocessing=TextPreprocessing(max_length=16, pad_token_id=0),
        files={},
    )
    return Bundle.create(folder, manifest)


def padded_feeds() -> Arrays:
    pack = EvaluationPack.from_rows(
        {"input_ids": ROWS},
        [0, 0, 0],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    (batch,) = pack.batches(3, SIGNATURE)
    order = np.argsort(batch.indices)
    return {name: array[order] for name, array in batch.feeds.items()}


def reference(checkpoint: Path) -> np.ndarray[Any, Any]:
    """Each row alone, so without any padding."""
    model = transformers.BertForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([row])).logits[0] for row in ROWS]
    return torch.stack(rows).numpy()  # type: ignore[no-any-return]


@pytest.fixture
def session(bundle: Bundle) -> Session:
    return PyTorch().load(bundle, threads=1)


def test_padded_rows_answer_as_the_original_does_without_padding(
    session: Session, checkpoint: Path
) -> None:
    logits = session.run(padded_feeds())["logits"]
    np.testing.assert_allclose(logits, reference(checkpoint), rtol=1e-4, atol=1e-5)
    assert logits.dtype == np.float32


def test_outputs_are_plain_arrays_without_gradients_and_repeat(session: Session) -> None:
    one, other = session.run(padded_feeds()), session.run(padded_feeds())
    assert isinstance(one["logits"], np.ndarray)
    assert (one["logits"] == other["logits"]).all()


def test_read_only_feeds_are_taken(session: Session) -> None:
    feeds = padded_feeds()
    for array in feeds.values():
        array.flags.writeable = False
    assert session.run(feeds)["logits"].shape == (3, 2)


def test_wrong_feeds_are_refused_by_name(session: Session) -> None:
    feeds = padded_feeds()
    del feeds["attention_mask"]
    with pytest.raises(InputError, match="'attention_mask' is missing"):
        session.run(feeds)


def test_threads_are_those_asked_for(bundle: Bundle) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 1):
            PyTorch().load(bundle, threads=threads)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_answers_in_a_worker_are_the_same(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    pack = EvaluationPack.from_rows(
        {"input_ids": ROWS},
        [0, 0, 0],
        preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
    )
    pack.save(tmp_path / "pack.safetensors")
    with Worker() as worker:
        worker.open(bundle.folder)
        logits = worker.predict(tmp_path / "pack.safetensors", batch_size=2)["logits"]
    np.testing.assert_allclose(logits, reference(checkpoint), rtol=1e-4, atol=1e-5)


def test_lowering_copies_and_leaves_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "unrelated.bin").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    out = tmp_path / "out"
    out.mkdir()
    lowered = PyTorch().lower(Source(checkpoint, SIGNATURE), out)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert lowered.model == "model.safetensors"


def test_shards_and_shapes_are_copied_with_the_rest(checkpoint: Path, tmp_path: Path) -> None:
    model = transformers.BertForSequenceClassification.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="20KB")
    (checkpoint / "shapes.json").write_text("{}")
    out = tmp_path / "out"
    out.mkdir()
    lowered = PyTorch().lower(Source(checkpoint, SIGNATURE), out)
    assert (out / lowered.model).is_file()
    expected = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in out.iterdir()} == expected
    assert len(expected) > 4


def test_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"needs a checkpoint folder with config\.json"):
        PyTorch().requires(Source(tmp_path, SIGNATURE))


def test_folder_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ToolkitError, match="no weights"):
        PyTorch().requires(Source(checkpoint, SIGNATURE))


def test_quantized_model_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="runs fp32 only") as caught:
        PyTorch().requires(Source(checkpoint, SIGNATURE, "int8"))
    assert caught.value.given == "int8"


def test_reason_when_a_library_is_missing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    reason = "the library torch is not installed: pip install 'compressor[build]'"
    assert PyTorch().cannot_run() == reason
    with pytest.raises(MissingLibraryError, match="torch and transformers"):
        PyTorch().load(bundle, threads=1)
