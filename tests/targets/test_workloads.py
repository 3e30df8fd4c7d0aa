"""Real texts are run as they are spread in the data, with and without their tokenization."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from targets import Bundle, Predictor
from targets.answers import Prediction
from targets.base import Session
from targets.errors import BundleError, InputError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec
from targets.preprocessing import TextPreprocessing
from targets.registry import open_session
from targets.signature import Arrays
from targets.workloads import NUM_REQUESTS, TextsSpec, bundle_texts, read_texts, requests

MakeBundle = Callable[..., Path]


class Recorder(Session):
    """Runs another session and keeps what it was fed."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner.signature)
        self.inner = inner
        self.seen: list[Arrays] = []

    def _run(self, feeds: Arrays) -> Arrays:  # type: ignore[override]
        self.seen.append(feeds)
        return self.inner.run(feeds)


@pytest.fixture
def bundle(make_bundle: MakeBundle) -> Bundle:
    return Bundle.open(make_bundle())


@pytest.fixture
def session(bundle: Bundle) -> Recorder:
    return Recorder(open_session(bundle, threads=1))


def spec_of(texts: list[str], folder: Path, **settings: object) -> TextsSpec:
    path = folder / "texts.json"
    path.write_text(json.dumps(texts), encoding="utf-8")
    return TextsSpec.model_validate({"texts": path, "batch_size": 1} | settings)


def lengths(session: Recorder) -> list[int]:
    """Tokens of every text that was run."""
    return [int(row.sum()) for feeds in session.seen for row in feeds["attention_mask"]]


def run_all(spec: FeedsSpec | TextsSpec, session: Recorder, bundle: Bundle) -> list[object]:
    return [run() for run in requests(spec, session, bundle)]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lengths_are_spread_as_those_of_the_texts(
    bundle: Bundle, session: Recorder, tmp_path: Path, batch_size: int
) -> None:
    # Nine in ten texts are short: so are nine in ten of those that run.
    texts = ["w1"] * 900 + ["w1 w2 w3 w4 w5 w6 w7 w8"] * 100
    run_all(spec_of(texts, tmp_path, batch_size=batch_size), session, bundle)
    found = lengths(session)
    assert len(session.seen) == NUM_REQUESTS
    assert len(found) == NUM_REQUESTS * batch_size
    assert set(found) == {3, 10}
    assert found.count(10) == pytest.approx(0.1 * len(found), abs=1)
    assert sorted(found) != found  # shuffled: batches are as mixed as requests are


def test_few_texts_are_run_several_times(bundle: Bundle, session: Recorder, tmp_path: Path) -> None:
    run_all(spec_of(["w1", "w1 w2"], tmp_path), session, bundle)
    assert sorted(lengths(session)) == [3] * 16 + [4] * 16


def test_the_same_requests_come_each_time(
    bundle: Bundle, session: Recorder, tmp_path: Path
) -> None:
    spec = spec_of([f"w{index % 9} " * (1 + index % 7) for index in range(50)], tmp_path)
    run_all(spec, session, bundle)
    run_all(spec, session, bundle)
    first, second = session.seen[:NUM_REQUESTS], session.seen[NUM_REQUESTS:]
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_with_tokenization_a_request_ends_with_labels_for_the_same_inputs(
    bundle: Bundle, session: Recorder, tmp_path: Path
) -> None:
    texts = ["w1", "w2 w3", "unseen w4 w5 w6"]
    run_all(spec_of(texts, tmp_path, batch_size=2), session, bundle)
    answers = run_all(spec_of(texts, tmp_path, batch_size=2, tokenization=True), session, bundle)
    tokens, raw = session.seen[:NUM_REQUESTS], session.seen[NUM_REQUESTS:]
    for one, other in zip(tokens, raw, strict=True):
        assert np.array_equal(one["input_ids"], other["input_ids"])
    assert all(isinstance(each, Prediction) for answer in answers for each in answer)  # type: ignore[attr-defined]
    assert {len(answer) for answer in answers} == {2}  # type: ignore[arg-type]


def test_a_synthetic_batch_is_one_request(bundle: Bundle, session: Recorder) -> None:
    [run] = requests(
        FeedsSpec(
            lengths=(5, 5),
            num_ids=20,
            preprocessing=TextPreprocessing(max_length=512, pad_token_id=0),
        ),
        session,
        bundle,
    )
    run()
    assert session.seen[0]["input_ids"].shape == (2, 5)


def test_texts_of_a_bundle_have_the_lengths_of_its_test_data(make_bundle: MakeBundle) -> None:
    folder = make_bundle()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    opened = Bundle.open(folder, verify=False)
    texts = ["w1", "w2 w3 w4", "w5 unseen w6"]
    with Predictor(opened) as predictor:
        pack = predictor.encode(texts)
    pack.save(folder / "evaluation.safetensors")
    manifest = opened.manifest.model_copy(update={"evaluation": "evaluation.safetensors"})
    bundle = Bundle.create(folder, manifest)
    again = Predictor(bundle).encode(bundle_texts(bundle))
    assert isinstance(again, EvaluationPack)
    assert again.lengths.tolist() == pack.lengths.tolist()
    assert bundle_texts(bundle) == ["w1", "w2 w3 w4", "w5 [UNK] w6"]


def test_a_bundle_without_test_data_has_no_texts(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="carries no test data to take texts from") as caught:
        bundle_texts(bundle)
    assert "pass a file of texts" in str(caught.value)


def test_texts_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("wer\n\n  \nwie ist es\n", encoding="utf-8")
    assert read_texts(path) == ["wer", "wie ist es"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), (b"\xff\xfe\x00", "cannot be read"), (b"\n \n", "holds no text")],
)
def test_a_file_without_texts_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_texts(path)
    assert str(path) in str(caught.value)
    assert caught.value.fix
