"""Models with an encoder and a decoder: each runtime writes what transformers writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from transformers import BartForConditionalGeneration, GenerationMixin, MarianMTModel

import targets
from compressor.errors import PassError
from compressor.lowering import _source
from compressor.model import Model, OnnxModel, TorchModel
from compressor.passes.base import PassContext
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.tasks import get_task
from targets.beam_search import Beams
from targets.bundle import SCHEMA_VERSION, Bundle, Manifest
from targets.errors import InputError, TargetError
from targets.preprocessing.base import DECODER_IDS
from targets.registry import get, open_session
from targets.signature import Arrays
from tests.compressor.marian import english, reference, write_marian
from tests.compressor.writers import (
    END,
    FAMILIES,
    make_splits,
    make_tokenizer,
    make_writer,
    write_writer,
)

TARGETS = ("onnxruntime", "openvino", "pytorch")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> TorchModel:
    return make_writer(request.param)


@pytest.fixture(scope="module")
def exported(model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    context = PassContext(
        splits=make_splits(model.task),
        load_original=lambda: model,
        seed=0,
        folder=tmp_path_factory.mktemp("export"),
    )
    export = Export(max_batch=4)
    result = export.run(model, context)
    export.ensures(model, result, context)
    assert isinstance(result.model, OnnxModel)
    result.model.save(result.model.folder)
    return result.model


def lower(model: Model, folder: Path, target: str, saved: Path) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    source = _source(model, saved)
    lowered = get(target).lower(source, folder)
    task = get_task(model.task)
    for path in task.processor_files(saved):
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, name="test", task=model.task, target=target,
        target_settings={}, precision="fp32", signature=source.signature, model=lowered.model,
        encoder=lowered.encoder, options=dict(lowered.options), labels=(), files={},
        answers=task.answers_with(model.processor),
        preprocessing=task.preprocessing(saved, model.max_length),
    )  # fmt: skip
    return Bundle.create(folder, manifest)


@pytest.fixture(scope="module", params=TARGETS)
def bundle(
    request: pytest.FixtureRequest,
    model: TorchModel,
    exported: OnnxModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "pytorch":
        model.save(folder / "saved")
        return lower(model, folder / "bundle", request.param, folder / "saved")
    return lower(exported, folder / "bundle", request.param, exported.folder)


def feeds_of(model: TorchModel) -> Arrays:
    task = get_task(model.task)
    return dict(task.collate(model, task.encode(model, make_splits(model.task).test.inputs[:3])))


def test_what_is_written_is_what_transformers_writes(model: TorchModel, bundle: Bundle) -> None:
    feeds, writing = feeds_of(model), model.processor.writing
    module: Any = model.module
    given = {name: torch.from_numpy(each) for name, each in feeds.items()}
    start = given.pop(DECODER_IDS)
    module.generation_config.update(forced_bos_token_id=None, bos_token_id=None)
    expected = GenerationMixin.generate(
        module,
        **given,
        decoder_input_ids=start,
        do_sample=False,
        num_beams=1,
        max_new_tokens=writing.longest,
        suppress_tokens=list(writing.suppressed) or None,
        begin_suppress_tokens=list(writing.suppressed_first) or None,
        eos_token_id=None,
    )
    rows = [row[start.shape[1] :] for row in expected.tolist()]
    assert len({tuple(row) for row in rows}) > 1
    session = open_session(bundle, threads=1)
    answers: Any = bundle.manifest.answers
    assert answers.end == END
    for end in (END, rows[0][0], rows[1][-1]):  # rows end at unlike steps, one of them at once
        wanted = [row[: row.index(end)] if end in row else row for row in rows]
        assert answers.model_copy(update={"end": end}).tokens(session, feeds) == wanted
    session.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 0.3, "early_stopping": "never"},
        {"num_beams": 2, "length_penalty": -1.0},
        {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
        {"no_repeat_ngram_size": 3, "min_new_tokens": 5},
    ],
    ids=str,
)
def test_settings_of_generation_give_what_transformers_writes(
    model: TorchModel, bundle: Bundle, settings: dict[str, Any]
) -> None:
    feeds, writing = feeds_of(model), model.processor.writing
    session = open_session(bundle, threads=1)
    answers: Any = bundle.manifest.answers
    changed = answers.model_copy(
        update={
            "beams": Beams(
                **{name: settings[name] for name in Beams.model_fields if name in settings}
            )
            if "num_beams" in settings
            else None,
            "no_repeat": settings.get("no_repeat_ngram_size", 0),
            "shortest": settings.get("min_new_tokens", 0),
        }
    )
    never = answers.model_copy(update={"end": 10_000}).tokens(session, feeds)
    ends = {END, never[0][4], never[1][2], 7}  # texts end at unlike steps, or at none
    found = []
    for end in sorted(ends):
        given = {name: torch.from_numpy(each) for name, each in feeds.items()}
        start = given.pop(DECODER_IDS)
        module: Any = model.module
        module.generation_config.update(forced_bos_token_id=None, bos_token_id=None)
        rows = GenerationMixin.generate(
            module,
            **given,
            decoder_input_ids=start,
            do_sample=False,
            max_new_tokens=writing.longest,
            suppress_tokens=list(writing.suppressed) or None,
            begin_suppress_tokens=list(writing.suppressed_first) or None,
            eos_token_id=end,
            pad_token_id=end,
            **settings,
        )[:, start.shape[1] :].tolist()
        wanted = [row[: row.index(end)] if end in row else row for row in rows]
        assert changed.model_copy(update={"end": end}).tokens(session, feeds) == wanted
        found.append(wanted)
    session.close()
    assert len({str(each) for each in found}) > 1


def predictor_of(folder: Path, tmp_path: Path) -> targets.Predictor:
    """A bundle of a checkpoint as it is."""
    model = get_task("translation").load_checkpoint(folder)
    context = PassContext(
        splits=make_splits("translation"), load_original=lambda: model, seed=0, folder=tmp_path
    )
    exported = Export(max_batch=2).run(model, context).model
    exported.save(tmp_path / "saved")
    bundle = lower(exported, tmp_path / "bundle", "onnxruntime", tmp_path / "saved")
    return targets.load(bundle.folder)


def test_marian_answers_as_transformers_does(tmp_path: Path) -> None:
    """From texts to texts: two vocabularies, beams, an end that is forced."""
    write_marian(tmp_path)
    texts = [" ".join(line.split()[:8]) for line in english()[:6]]
    tokenizer = reference(tmp_path / "model", separate=True)
    network: Any = MarianMTModel.from_pretrained(tmp_path / "model")
    with predictor_of(tmp_path / "model", tmp_path) as predictor:
        answers = [each.text for each in predictor.predict(texts)]
    wanted = []
    for text in texts:
        [row] = network.generate(**tokenizer(text, return_tensors="pt"), do_sample=False)
        wanted.append(tokenizer.decode(row, skip_special_tokens=True, use_source_tokenizer=False))
    assert answers == wanted
    assert len(set(answers)) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "length_penalty": 2.0, "min_length": 6, "no_repeat_ngram_size": 3},
        {"num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "max_new_tokens": 7},
        {"min_new_tokens": 5, "max_new_tokens": 6},
    ],
    ids=str,
)
def test_what_files_say_of_generation_is_what_transformers_does(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A BART whose texts begin and end with tokens that are forced."""
    write_writer(tmp_path, "bart")
    folder, path = tmp_path / "model", tmp_path / "model" / "generation_config.json"
    given = {**json.loads(path.read_text()), "forced_eos_token_id": END, **settings}
    path.write_text(json.dumps(given))
    network: Any = BartForConditionalGeneration.from_pretrained(folder)
    tokenizer = make_tokenizer()
    texts = list(make_splits("translation").test.inputs[:6])
    with predictor_of(folder, tmp_path) as predictor:
        answers = [each.text for each in predictor.predict(texts)]
    wanted = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        [row] = network.generate(**inputs, do_sample=False)
        wanted.append(tokenizer.decode(row, skip_special_tokens=True))
    assert answers == wanted
    assert len(set(answers)) > 1


def test_what_is_found_for_a_row_does_not_depend_on_the_others(
    model: TorchModel, bundle: Bundle
) -> None:
    feeds = feeds_of(model)
    session = open_session(bundle, threads=1)
    answers = bundle.manifest.answers.model_copy(update={"beams": Beams(num_beams=3)})
    together = answers.tokens(session, feeds)
    task = get_task(model.task)
    rows = task.encode(model, make_splits(model.task).test.inputs[:3])
    apart = [answers.tokens(session, dict(task.collate(model, [row])))[0] for row in rows]
    for rows_of in (np.array([0]), np.array([0, 1, 9])):
        with pytest.raises(InputError, match="not those of the last run") as caught:
            session.extend({DECODER_IDS: np.ones((3, 1), np.int64)}, rows_of)
    assert "from 0 to 2" in str(caught.value.fix)
    session.close()
    assert together == apart


def test_a_run_begins_anew_and_extend_goes_on(model: TorchModel, bundle: Bundle) -> None:
    feeds = feeds_of(model)
    ids = np.array([[1, 4, 8, 9, 12], [1, 4, 5, 20, 6], [1, 4, 7, 7, 11]])
    with torch.inference_mode():
        given = {name: torch.from_numpy(each) for name, each in {**feeds, DECODER_IDS: ids}.items()}
        expected = model.module(**given).logits.numpy()
    session = open_session(bundle, threads=1)
    for _ in range(2):
        found = [session.run({**feeds, DECODER_IDS: ids[:, :2]})["logits"]]
        found += [session.extend({DECODER_IDS: ids[:, i : i + 1]})["logits"] for i in (2, 3)]
        found.append(session.extend({DECODER_IDS: ids[:, 4:]})["logits"])
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=2e-4)
    one = {name: each[1:2] for name, each in feeds.items()}
    np.testing.assert_allclose(
        session.run({**one, DECODER_IDS: ids[1:2]})["logits"], expected[1:2], atol=2e-4
    )
    with pytest.raises(InputError, match="unknown input"):
        session.extend({**one, DECODER_IDS: ids[1:2]})
    session.close()
    with pytest.raises(TargetError, match="the session is closed"):
        session.extend({DECODER_IDS: ids[1:2]})


def test_keys_and_values_of_8_bits_are_refused(exported: OnnxModel, tmp_path: Path) -> None:
    context = PassContext(
        splits=make_splits(exported.task),
        load_original=lambda: None,  # type: ignore[arg-type, return-value]
        seed=0,
        folder=tmp_path,
    )
    with pytest.raises(PassError, match="keys and values in 8 bits are for language models"):
        Quantize(method="weights", kv_cache="int8").requires(exported, context)


def test_the_encoder_has_the_keys_and_values_of_the_cross_attention(
    exported: OnnxModel, tmp_path: Path
) -> None:
    """And the decoder none of the weights that they are computed with."""
    bundle = lower(exported, tmp_path / "bundle", "onnxruntime", exported.folder)
    assert bundle.encoder_path is not None
    encoder, decoder = (onnx.load(path) for path in (bundle.encoder_path, bundle.model_path))
    matrices = [tensor.name for tensor in decoder.graph.initializer if len(tensor.dims) > 1]
    assert matrices
    assert [name for name in matrices if name.startswith(("model.encoder.", "encoder."))] == []
    assert not any(".encoder_attn.k_proj" in name for name in matrices)
    layers = 2
    floats = [
        value.name
        for value in encoder.graph.output
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]
    assert len(floats) in (2 * layers, 2 * layers + 1)  # with a mask
    assert {value.name for value in decoder.graph.output} >= {"logits", "present.0.key"}
