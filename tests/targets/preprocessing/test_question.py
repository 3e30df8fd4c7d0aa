"""Questions with their contexts: what is read, what is cut, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from targets.errors import InputError
from targets.preprocessing import Encoder, Question, QuestionPreprocessing
from targets.preprocessing.question import QuestionEncoder
from targets.signature import Signature, TensorSpec
from tests.compressor.questions import make_pair_tokenizer

QUESTION = Question("who is where", "w a b c d e f")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedTokenizerFast]:
    folder, made = tmp_path_factory.mktemp("tokenizer"), make_pair_tokenizer()
    made.save_pretrained(folder)
    return folder, made


def opened(folder: Path, max_length: int) -> Encoder:
    return QuestionPreprocessing(max_length=max_length, pad_token_id=0).open(folder)


@pytest.mark.parametrize("max_length", [40, 12, 8])
def test_pairs_are_read_as_transformers_reads_them(
    tokenizer: tuple[Path, PreTrainedTokenizerFast], max_length: int
) -> None:
    folder, reference = tokenizer
    given: list[Any] = [QUESTION, QUESTION._asdict(), json.dumps(QUESTION._asdict())]
    found = opened(folder, max_length).encode(given)
    wanted = reference(
        *QUESTION, truncation="only_second", max_length=max_length, return_token_type_ids=True
    )
    for row in range(3):
        assert found.rows["input_ids"][row].tolist() == wanted["input_ids"]
        assert found.rows["token_type_ids"][row].tolist() == wanted["token_type_ids"]
    assert found.truncated == (max_length < 40 and len(wanted["input_ids"]) == max_length,) * 3
    assert 1 in wanted["token_type_ids"]


def test_batches_have_the_types_of_tokens_where_the_model_takes_them(
    tokenizer: tuple[Path, PreTrainedTokenizerFast],
) -> None:
    how = QuestionPreprocessing(max_length=40, pad_token_id=0)
    rows = how.open(tokenizer[0]).encode([QUESTION, Question("who", "w")]).rows
    names = ("input_ids", "attention_mask", "token_type_ids")
    specs = [TensorSpec(name=each, dtype="int64", shape=("batch", "sequence")) for each in names]
    all_three = how.feeds(rows, Signature(inputs=tuple(specs), outputs=()))
    types, mask = all_three["token_type_ids"], all_three["attention_mask"]
    assert (types[0] == rows["token_type_ids"][0]).all()
    assert types[1].sum() == 2
    assert (types <= mask).all()
    assert [*how.feeds(rows, Signature(inputs=tuple(specs[:2]), outputs=()))] == [*names[:2]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{", ("a question is not valid JSON", "questions[0]", '"context"')),
        ("[1]", ("not an object with a question and a context", "list [1]")),
        (7, ("not an object with a question and a context", "int 7")),
        ({"question": "who"}, ("no text in the field 'context'", "context=None")),
        ({"question": " ", "context": "w"}, ("no text in the field 'question'",)),
        ({"question": "who", "context": ["w"]}, ("no text in the field 'context'",)),
        (Question("who " * 50, "w a b"),
         ("nothing of its context fits", "questions[0]", "20 tokens")),
    ],
)  # fmt: skip
def test_what_is_no_question_is_named(
    tokenizer: tuple[Path, PreTrainedTokenizerFast], given: object, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as raised:
        opened(tokenizer[0], 20).encode([given, QUESTION])
    for each in words:
        assert each in str(raised.value)


def test_a_single_question_is_refused(tokenizer: tuple[Path, PreTrainedTokenizerFast]) -> None:
    with pytest.raises(InputError, match="takes a list of questions"):
        opened(tokenizer[0], 20).encode("{}")


def test_tokens_give_questions_of_the_same_tokens(
    tokenizer: tuple[Path, PreTrainedTokenizerFast],
) -> None:
    encoder = opened(tokenizer[0], 40)
    assert isinstance(encoder, QuestionEncoder)
    rows = encoder.encode([QUESTION, Question("where", "w ~ a")]).rows["input_ids"]
    found = encoder.decode(rows)
    assert json.loads(found[0]) == QUESTION._asdict()
    again = encoder.encode(found).rows["input_ids"]
    assert [each.tolist() for each in again] == [each.tolist() for each in rows]
