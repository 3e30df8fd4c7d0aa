"""A predictor answers raw text as transformers and ONNX Runtime would, without transformers."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import targets
from targets import Bundle, Manifest, Predictor, Signature, Source, TensorSpec
from targets.answers import softmax
from targets.bundle import SCHEMA_VERSION
from targets.errors import BundleError, InputError, TargetError
from targets.predictor import encode, predict_lines, read_jsonl
from targets.preprocessing import TextPreprocessing
from targets.preprocessing.text import TextEncoder

TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8", "", "unseen w1", " ".join(["w9"] * 40), "w1 w2"]
LABELS = ("negative", "neutral", "positive")
MAX_LENGTH = 12


def small_onnx(path: Path) -> None:
    """Masked mean of embeddings, then a linear layer: depends on ids, mask and token types."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(20, 8)).astype(np.float32),
        "classes": random.normal(size=(8, 3)).astype(np.float32),
        "last": np.array([-1], dtype=np.int64),
        "rows": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "rows"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "rows"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "classes"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


@pytest.fixture
def bundle(tmp_path: Path, write_tokenizer: Callable[[Path], None]) -> Bundle:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    small_onnx(tmp_path / "source.onnx")
    signature = Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"))
            for name in ("input_ids", "attention_mask")
        ),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 3)),),
    )
    folder = tmp_path / "bundle"
    folder.mkdir()
    target = targets.get("onnxruntime")
    lowered = target.lower(Source(tmp_path / "source.onnx", signature), folder)
    write_tokenizer(folder)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name="small",
        task="text-classification",
        target=target.name,
        target_settings=target.settings(),
        precision="fp32",
        signature=signature,
        model=lowered.model,
        options=dict(lowered.options),
        labels=LABELS,
        preprocessing=TextPreprocessing(max_length=MAX_LENGTH, pad_token_id=0),
        files={},
    )
    return Bundle.create(folder, manifest)


def reference_logits(bundle: Bundle, texts: list[str]) -> np.ndarray[Any, Any]:
    """One text at a time, by transformers' tokenizer and ONNX Runtime itself."""
    import onnxruntime
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bundle.path("tokenizer.json")))
    session = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    rows = []
    for text in texts:
        encoded = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")
        feeds = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        rows.append(session.run(None, feeds)[0][0])
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_predictions_match_transformers_and_onnxruntime(bundle: Bundle, batch_size: int) -> None:
    expected = reference_logits(bundle, TEXTS)
    with targets.load(bundle.folder, batch_size=batch_size) as predictor:
        np.testing.assert_allclose(predictor.logits(TEXTS), expected, rtol=1e-5, atol=1e-6)
        predictions = predictor.predict(TEXTS)
    assert [each.label for each in predictions] == [LABELS[row.argmax()] for row in expected]
    for prediction, row in zip(predictions, softmax(expected), strict=True):
        assert list(prediction.scores) == list(LABELS)
        assert prediction.score == max(prediction.scores.values())
        assert list(prediction.scores.values()) == pytest.approx(row, abs=1e-5)
        assert sum(prediction.scores.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("alone", "given", "sizes"),
    [(False, None, [len(TEXTS)]), (True, None, [1] * len(TEXTS)), (True, 4, [4])],
)
def test_inputs_run_one_at_a_time_where_they_were_judged_so(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    alone: bool,
    given: int | None,
    sizes: list[int],
) -> None:
    target = type(targets.get(bundle.manifest.target))
    monkeypatch.setattr(target, "runs_alone", lambda target, bundle: alone)
    found: list[int] = []
    with targets.load(bundle.folder, batch_size=given) as predictor:
        run = predictor._session.run

        def noted(feeds: Any) -> Any:
            found.append(len(feeds["input_ids"]))
            return run(feeds)

        monkeypatch.setattr(predictor._session, "run", noted)
        predictor.predict(TEXTS[: sum(sizes)])
    assert found == sizes


def test_a_text_that_was_cut_says_so(bundle: Bundle) -> None:
    words = ["w1"] * (MAX_LENGTH - 2)  # and [CLS] and [SEP]
    with Predictor(bundle) as predictor:
        found = predictor.predict(["w1", " ".join(words), " ".join([*words, "w1"])])
    assert [each.truncated for each in found] == [False, False, True]


def test_the_command_counts_the_texts_that_were_cut(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.cli import main

    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(["w1", "w2 " * 40, "w3"])))
    with pytest.raises(SystemExit) as left:
        main(["predict", str(bundle.folder)])
    assert not left.value.code
    out, err = capsys.readouterr()
    assert [json.loads(line)["truncated"] for line in out.splitlines()] == [False, True, False]
    assert "1 of 3 texts were longer than the 12 tokens" in " ".join(err.split())


def test_tokens_are_exactly_those_of_transformers(bundle: Bundle) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(bundle.path("tokenizer.json")))
    expected = tokenizer(TEXTS, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    with Predictor(bundle) as predictor:
        pack = predictor.encode(TEXTS)
    assert np.split(pack.inputs["input_ids"], pack.offsets[1:])[5].shape == (MAX_LENGTH,)
    assert pack.inputs["input_ids"].tolist() == [value for row in expected for value in row]


def test_a_model_that_reads_the_ends_of_texts(bundle: Bundle) -> None:
    from transformers import PreTrainedTokenizerFast

    path = str(bundle.path("tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=path, truncation_side="left")
    texts = ["w1 w2", " ".join(f"w{number % 9}" for number in range(2 * MAX_LENGTH))]
    expected = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    usual = bundle.manifest.preprocessing
    assert "truncation_side" not in usual.model_dump(mode="json")
    ends = usual.model_validate({**usual.model_dump(), "truncation_side": "left"})
    found = ends.open(bundle.folder).encode(texts)
    assert [row.tolist() for row in found.rows["input_ids"]] == expected
    beginnings = usual.open(bundle.folder).encode(texts)
    assert [row.tolist() for row in beginnings.rows["input_ids"]] != expected


def test_numbers_that_are_not_finite_are_no_answer(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    from compressor.cli import main

    onnx = pytest.importorskip("onnx")
    numpy_helper = onnx.numpy_helper
    model = onnx.load(bundle.model_path)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight).copy()
        if values.dtype == np.float32:
            values[..., -1] = np.nan
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, bundle.model_path)
    broken = Bundle.create(bundle.folder, bundle.manifest.model_copy(update={"files": {}}))
    with pytest.raises(SystemExit) as left:
        main(["predict", str(broken.folder), "--text", "w1"])
    assert left.value.code == TargetError.exit_code
    out, err = capsys.readouterr()
    assert not out
    assert "the outputs of the model are not finite" in " ".join(err.split())


def test_padding_in_the_tokenizer_file_is_not_used(bundle: Bundle) -> None:
    from tokenizers import Tokenizer

    path = bundle.path("tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(length=12)
    tokenizer.save(str(path))
    with Predictor(bundle) as predictor:
        assert predictor.encode(["w1", "w1 w2"]).lengths.tolist() == [3, 4]


def test_labelled_texts_become_a_pack_without_loading_the_model(bundle: Bundle) -> None:
    pack = encode(bundle, ["w1", "w1 w2"], np.array([2, 0]))
    assert pack.labels.tolist() == [2, 0]
    assert pack.lengths.tolist() == [3, 4]
    with pytest.raises(InputError, match="labels do not fit"):
        encode(bundle, ["w1", "w1 w2"], np.array([2]))


def test_no_texts_give_no_predictions(bundle: Bundle) -> None:
    with Predictor(bundle) as predictor:
        assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("texts", "message", "given"),
    [
        (["w1", None], "a text is not a string", "NoneType None"),
        (["w1", 3.5], "a text is not a string", "float 3.5"),
        ("w1 w2", "takes a list of texts", "str 'w1 w2'"),
        ("", "takes a list of texts", "str ''"),
        (5, "takes a list of texts", "int 5"),
        (["w1", "a\ud83d"], "half of a character", "'\\ud83d'"),
    ],
)
def test_what_is_not_text_is_refused(
    bundle: Bundle, texts: object, message: str, given: str
) -> None:
    with Predictor(bundle) as predictor, pytest.raises(InputError, match=message) as caught:
        predictor.predict(texts)  # type: ignore[arg-type]
    assert caught.value.given == given
    if isinstance(texts, list):
        assert str(caught.value.where).startswith("texts[1]")


def test_a_text_without_tokens_is_named(bundle: Bundle) -> None:
    """Of a tokenizer that puts none around texts."""
    plain = Tokenizer.from_file(str(bundle.path("tokenizer.json")))
    plain.post_processor = None
    preprocessing = bundle.manifest.preprocessing
    assert isinstance(preprocessing, TextPreprocessing)
    encoder = TextEncoder(preprocessing, plain)
    with pytest.raises(InputError, match="a text has no tokens") as caught:
        encoder.encode(["w1", ""])
    assert caught.value.where == "texts[1]"


def test_lines_are_predicted_in_their_order_across_chunks(bundle: Bundle) -> None:
    lines = [f"w{index % 16}\n" for index in range(7)]
    with Predictor(bundle) as predictor:
        streamed = list(predict_lines(predictor, iter(lines), chunk=3))
        at_once = predictor.predict([line.strip() for line in lines])
    assert [each.label for each in streamed] == [each.label for each in at_once]


def test_a_line_is_answered_before_the_next_one_is_read(bundle: Bundle) -> None:
    asked = []

    def client() -> Iterator[str]:
        for index in range(3):
            asked.append(index)
            yield f"w{index}\n"

    with Predictor(bundle, batch_size=4) as predictor:
        answers = predict_lines(predictor, client(), chunk=1)
        next(answers)
        assert asked == [0]
        assert len(list(answers)) == 2


def test_threads_may_share_a_predictor(bundle: Bundle) -> None:
    texts = [f"w{index % 9} w{index % 7}" for index in range(60)]
    with targets.load(bundle.folder, batch_size=4) as predictor:
        expected = [each.scores for each in predictor.predict(texts)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: predictor.predict(texts), range(18)))
    for answer in answers:
        assert [each.scores for each in answer] == expected


def test_the_event_loop_goes_on_and_answers_come_in_order(bundle: Bundle) -> None:
    done: list[str] = []

    async def ask(predictor: Predictor, text: str) -> list[targets.Prediction]:
        answer = await predictor.predict_async([text] * 200)
        done.append(text)
        return answer

    async def tick() -> int:
        count = 0
        while len(done) < 3:
            await asyncio.sleep(0)
            count += 1
        return count

    async def all_of_it(predictor: Predictor) -> tuple[list[list[targets.Prediction]], int]:
        *answers, ticks = await asyncio.gather(
            *(ask(predictor, text) for text in ("w1", "w2", "w3")), tick()
        )
        return answers, ticks  # type: ignore[return-value]

    with targets.load(bundle.folder) as predictor:
        answers, ticks = asyncio.run(all_of_it(predictor))
        expected = predictor.predict(["w1", "w2", "w3"])
    assert done == ["w1", "w2", "w3"]
    assert [answer[0] for answer in answers] == expected
    assert ticks > 3


def test_what_was_asked_for_is_answered_before_closing(bundle: Bundle) -> None:
    async def ask(predictor: Predictor) -> list[targets.Prediction]:
        waiting = asyncio.ensure_future(predictor.predict_async(["w1"] * 50))
        await asyncio.sleep(0)
        predictor.close()
        return await waiting

    predictor = targets.load(bundle.folder)
    assert len(asyncio.run(ask(predictor))) == 50
    with pytest.raises(TargetError, match="session is closed"):
        predictor.predict(["w1"])


def test_json_lines_are_read_by_their_field() -> None:
    lines = ['{"text": "a", "id": 1}', "", '{"text": "b\\nc"}']
    assert list(read_jsonl(lines, "text")) == ["a", "b\nc"]
    assert list(read_jsonl(['{"body": "x"}'], "body")) == ["x"]
    assert list(read_jsonl(['{"text": [0.5, 1]}'], "text", lists=True)) == [[0.5, 1]]


@pytest.mark.parametrize(
    ("line", "what", "words"),
    [
        ("{", "a line is not valid JSON", "leave out --jsonl"),
        ("[1]", "a line has no text in the field 'text'", "--field"),
        ('{"text": 3}', "a line has no text in the field 'text'", "--field"),
        ('{"body": "x"}', "a line has no text in the field 'text'", "--field"),
    ],
)
def test_a_line_that_holds_no_text_is_named(line: str, what: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        list(read_jsonl(['{"text": "a"}', line], "text"))
    assert (caught.value.what, caught.value.where) == (what, "line 2")
    assert words in str(caught.value.fix)


def test_broken_tokenizer_names_the_file(bundle: Bundle) -> None:
    bundle.path("tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="tokenizer of the bundle cannot be read") as caught:
        Predictor(bundle)
    assert caught.value.where == str(bundle.path("tokenizer.json"))


def test_changed_bundle_is_refused(bundle: Bundle) -> None:
    bundle.path("tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="changed"):
        targets.load(bundle.folder)


def test_prediction_imports_neither_torch_nor_transformers_nor_onnx(bundle: Bundle) -> None:
    script = f"""
import json, sys, targets
prediction = targets.load({str(bundle.folder)!r}).predict(["w1"])[0]
heavy = [n for n in ("torch", "transformers", "onnx", "datasets", "pandas") if n in sys.modules]
print(json.dumps([prediction.model_dump(), heavy]))
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    prediction, heavy = json.loads(output)
    assert heavy == []
    assert prediction["label"] in LABELS
