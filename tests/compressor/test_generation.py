"""Language models that keep their keys and values: each runtime writes what transformers writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, models

from compressor.architecture import Architecture
from compressor.errors import PackageError, PassError
from compressor.model import OnnxModel, TorchModel
from compressor.onnx_io import node_types
from compressor.parity import measure_parity
from compressor.passes.base import PassContext
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.pruning.slicing import Kept, keep_units
from compressor.serving import available_formats
from compressor.tasks import get_task
from targets.answers import NextTokenAnswers
from targets.base import Source
from targets.bench import BenchReport
from targets.bundle import SCHEMA_VERSION, Bundle, Manifest
from targets.errors import (
    BundleError,
    InputError,
    TargetError,
    ToolkitError,
    UnsupportedModelError,
)
from targets.generation import Generator, load_generator
from targets.measurement import Round
from targets.registry import get, open_session
from targets.signature import Signature, StateSpec, TensorSpec
from targets.worker import Commands
from targets.worker_client import Worker
from targets.writing import Writing, check_writes, measure_writing, writing_speedup
from tests.compressor.conftest import Outcome
from tests.compressor.decoders import TASK, make_decoder, plain_splits

TARGETS = ("onnxruntime", "openvino")
FAMILIES = ("llama", "gpt2")
PROMPT = [5, 9, 12, 7]


def pruned_llama() -> TorchModel:
    """Layers of unlike heads, so that what is kept differs by layer."""
    model = make_decoder("llama")
    ids = {"input_ids": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 4).long()}
    kept = Kept([(0, 2), (1, 2, 3), (3,)], [range(48)] * 3)
    return replace(model, module=keep_units(model.module, kept, ids))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> TorchModel:
    return pruned_llama() if request.param == "llama" else make_decoder(request.param)


@pytest.fixture(scope="module")
def exported(model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    context = PassContext(
        splits=plain_splits(),
        load_original=lambda: model,
        seed=0,
        folder=tmp_path_factory.mktemp("export"),
    )
    export = Export(cache=True, max_batch=4)
    result = export.run(model, context)
    export.ensures(model, result, context)
    assert isinstance(result.model, OnnxModel)
    result.model.save(result.model.folder)
    return result.model


def lower(model: OnnxModel, target: str, folder: Path) -> Bundle:
    source = Source(model.path, model.signature, model.precision, model.ranges)
    return build(source, model.folder, model.max_length, target, folder)


def build(source: Source, model: Path, max_length: int, target: str, folder: Path) -> Bundle:
    folder.mkdir(parents=True, exist_ok=True)
    lowered = get(target).lower(source, folder)
    task = get_task(TASK)
    for path in task.processor_files(model):
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION, name="test", task=TASK, target=target, target_settings={},
        precision=source.precision, signature=source.signature, model=lowered.model,
        options=dict(lowered.options), labels=(), answers=task.answers, files={},
        preprocessing=task.preprocessing(model, max_length),
    )  # fmt: skip
    return Bundle.create(folder, manifest)


@pytest.fixture(scope="module", params=(*TARGETS, "pytorch"))
def bundle(
    request: pytest.FixtureRequest,
    model: TorchModel,
    exported: OnnxModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param != "pytorch":
        return lower(exported, request.param, folder)
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    model.save(checkpoint)
    source = Source(checkpoint, exported.signature)
    return build(source, checkpoint, model.max_length, request.param, folder)


def test_the_check_of_an_export_goes_on_from_what_the_model_keeps(
    model: TorchModel, exported: OnnxModel, tmp_path: Path
) -> None:
    """One that hands on something else is right as long as each text is read at once."""
    texts = plain_splits().validation.inputs
    found = measure_parity(model, exported.path, texts, exported.signature)
    assert found.max_relative_difference < 1e-4
    broken = onnx.load(exported.path)
    first, second = (each.output for each in exported.signature.state[:2])
    own = {name: f"{name}_own" for name in (first, second)}
    for node in broken.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = own.get(name, name)
    make = onnx.helper.make_node
    swapped = ((own[first], second), (own[second], first))
    broken.graph.node.extend(make("Identity", [one], [other]) for one, other in swapped)
    onnx.save(broken, tmp_path / "broken.onnx")
    wrong = measure_parity(model, tmp_path / "broken.onnx", texts, exported.signature)
    assert wrong.max_relative_difference > 0.01
    assert wrong.worst_case.endswith(", in two runs")


def logits_of(model: TorchModel, ids: list[list[int]], mask: Any = None) -> Any:
    given = torch.tensor(ids)
    kept = torch.ones_like(given) if mask is None else torch.tensor(mask)
    with torch.inference_mode():
        return model.module(input_ids=given, attention_mask=kept).logits.numpy()


def feeds(ids: list[list[int]], total: int) -> dict[str, Any]:
    return {
        "input_ids": np.array(ids, dtype=np.int64),
        "attention_mask": np.ones((len(ids), total), dtype=np.int64),
    }


def test_a_run_begins_anew_and_extend_goes_on(model: TorchModel, bundle: Bundle) -> None:
    ids = [[5, 9, 12, 7, 8, 3], [6, 14, 3, 19, 4, 11]]
    expected = logits_of(model, ids)
    session = open_session(bundle, threads=1)
    for _ in range(2):
        found = [session.run(feeds([row[:3] for row in ids], 3))["logits"]]
        found.append(session.extend(feeds([row[3:4] for row in ids], 4))["logits"])
        found.append(session.extend(feeds([row[4:] for row in ids], 6))["logits"])
        np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=2e-4)
    one = session.run(feeds(ids[:1], 6))["logits"]
    np.testing.assert_allclose(one, expected[:1], atol=2e-4)
    session.close()
    with pytest.raises(TargetError, match="the session is closed"):
        session.extend(feeds(ids, 6))


def test_padded_rows_are_read_as_without_padding(model: TorchModel, bundle: Bundle) -> None:
    ids, mask = [[5, 9, 12, 7], [6, 14, 2, 2]], [[1, 1, 1, 1], [1, 1, 0, 0]]
    session = open_session(bundle, threads=1)
    given = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
    found = session.run(given)["logits"]
    np.testing.assert_allclose(found[1, :2], logits_of(model, [[6, 14]])[0], atol=2e-4)
    session.close()


def test_greedy_writing_is_that_of_transformers(model: TorchModel, bundle: Bundle) -> None:
    module: Any = model.module
    expected = module.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )[0, len(PROMPT) :].tolist()
    with load_generator(bundle.folder) as generator:
        generator.ends = frozenset()
        assert list(generator.tokens(PROMPT, max_tokens=12)) == expected
        words = generator.tokenizer.decode([*PROMPT, *expected])
        prompt = generator.tokenizer.decode(PROMPT)
        # With the space between the two, which a decoder leaves out where a text begins.
        assert prompt + "".join(generator.stream(prompt, max_tokens=12)) == words
        generator.ends = frozenset({expected[3]})
        stop = expected.index(expected[3])
        assert list(generator.tokens(PROMPT, max_tokens=12)) == expected[:stop]
        generator.ends = frozenset()
        generator.max_length = len(PROMPT) + 5
        assert list(generator.tokens(PROMPT, max_tokens=12)) == expected[:5]


@pytest.mark.parametrize("prompt", ["a", "\u4f1a", "\u4f1a\u4f1a", "a\u4f1a\u4f1a\u4f1a"])
def test_characters_that_are_written_as_bytes_go_on_from_others(
    monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """A run of bytes is decoded as a whole: it must not begin within a character."""
    unknown = "<unk>"
    vocabulary = {unknown: 0, "a": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    generator = object.__new__(Generator)
    generator.tokenizer = tokenizer
    written = tokenizer.encode("\u597da").ids
    assert len(written) == 4
    monkeypatch.setattr(generator, "tokens", lambda prompt, max_tokens: iter(written))
    assert list(generator.stream(prompt, max_tokens=9)) == ["\u597d", "a"]


def test_two_texts_cannot_be_written_in_turn(bundle: Bundle) -> None:
    with load_generator(bundle.folder) as generator:
        wanted = list(generator.tokens([5, 9], max_tokens=3))
        first = generator.tokens([5, 9], max_tokens=3)
        assert next(first) == wanted[0]
        assert len(list(generator.tokens(PROMPT, max_tokens=2))) <= 2
        with pytest.raises(InputError, match="another text was started") as caught:
            next(first)
        assert caught.value.given == "1 tokens written"
        assert list(generator.tokens([5, 9], max_tokens=3)) == wanted


def test_scores_that_are_no_numbers_are_no_tokens(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load_generator(bundle.folder) as generator:
        name = generator.session.signature.outputs[0].name
        run = generator.session.run

        def broken(feeds: Any) -> Any:
            return {**run(feeds), name: np.full((1, 4, 23), np.nan, np.float32)}

        monkeypatch.setattr(generator.session, "run", broken)
        with pytest.raises(TargetError):
            next(generator.tokens(PROMPT, max_tokens=2))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "the text to continue is empty"), ([3] * 24, "the text is too long to be continued")],
)
def test_a_prompt_that_leaves_no_room_is_refused(
    bundle: Bundle, prompt: list[int], message: str
) -> None:
    with load_generator(bundle.folder) as generator:
        assert generator.ends == {2}
        with pytest.raises(InputError, match=message) as caught:
            next(generator.tokens(prompt, max_tokens=1))
    assert "1 to 23 tokens" in str(caught.value.fix)


def test_weights_of_8_bits_keep_their_state(
    model: TorchModel, exported: OnnxModel, tmp_path: Path
) -> None:
    context = PassContext(
        splits=plain_splits(), load_original=lambda: model, seed=0, folder=tmp_path / "work"
    )
    context.folder.mkdir()
    quantized = Quantize(method="weights").run(exported, context).model
    assert isinstance(quantized, OnnxModel)
    for target in TARGETS:
        session = open_session(lower(quantized, target, tmp_path / target), threads=1)
        session.run(feeds([PROMPT[:3]], 3))
        found = session.extend(feeds([PROMPT[3:]], 4))["logits"][0, -1]
        expected = logits_of(model, [PROMPT])[0, -1]
        assert np.corrcoef(found, expected)[0, 1] > 0.99
        session.close()


@pytest.mark.parametrize("target", TARGETS)
def test_a_cache_of_8_bits_takes_a_quarter(
    model: TorchModel, exported: OnnxModel, tmp_path: Path, target: str
) -> None:
    context = PassContext(
        splits=plain_splits(), load_original=lambda: model, seed=0, folder=tmp_path
    )
    quantized = Quantize(method="weights", kv_cache="int8", num_samples=32)
    quantized.requires(exported, context)
    smaller = quantized.run(exported, context).model
    assert isinstance(smaller, OnnxModel)
    assert OnnxModel.load(smaller.folder).signature == smaller.signature
    assert {spec.dtype for spec in smaller.signature.state} == {"uint8"}
    source = Source(smaller.path, smaller.signature, smaller.precision, smaller.ranges)
    (tmp_path / "alone").mkdir()
    lowered = get(target).lower(source, tmp_path / "alone")
    assert lowered.cpu_features == ()  # what saturates on some CPUs are products of integers
    assert not any("saturate" in note or "VNNI" in note for note in lowered.notes)
    session = open_session(lower(smaller, target, tmp_path / target), threads=1)
    ids = [[5, 9, 12, 7, 8, 3], [6, 14, 3, 19, 4, 11]]
    whole = session.run(feeds(ids, 6))["logits"]
    folder = tmp_path / "floats"
    folder.mkdir()
    floats = Quantize(method="weights").run(exported, replace(context, folder=folder)).model
    assert isinstance(floats, OnnxModel)
    other = open_session(lower(floats, target, folder / target), threads=1)
    wanted = other.run(feeds(ids, 6))["logits"]
    other.close()
    difference = np.abs(whole - wanted)
    assert difference.mean() < 0.06
    assert 1e-4 < difference.max() < 0.3  # rounded, and well
    found = [session.run(feeds([row[:3] for row in ids], 3))["logits"]]
    found.append(session.extend(feeds([row[3:] for row in ids], 6))["logits"])
    np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=2e-3)
    session.close()


def test_onnx_runtime_fuses_norms_by_the_root_mean_square(
    model: TorchModel, exported: OnnxModel, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # what was optimized is for this machine alone, it warns
    onnxruntime.InferenceSession(exported.path, options, providers=["CPUExecutionProvider"])
    found = node_types(onnx.load(tmp_path / "optimized.onnx"))
    norms = sum(type(each).__name__.endswith("RMSNorm") for each in model.module.modules())
    assert found["SimplifiedLayerNormalization"] == norms
    assert "Reciprocal" not in found


def test_a_cache_that_is_not_there_is_not_quantized(word_model: Any, tmp_path: Path) -> None:
    signature = Signature(inputs=(), outputs=())
    plain = OnnxModel(tmp_path, signature, "fp32", "text-classification", ("a", "b"), 8, {})
    context = PassContext(
        splits=plain_splits(), load_original=lambda: word_model(), seed=0, folder=tmp_path
    )
    with pytest.raises(PassError, match="keeps no keys and values") as caught:
        Quantize(kv_cache="int8").requires(plain, context)
    assert "cache: true" in str(caught.value.fix)


def test_a_bundle_without_a_state_writes_nothing(exported: OnnxModel, tmp_path: Path) -> None:
    bundle = lower(exported, "onnxruntime", tmp_path)
    plain = bundle.manifest.signature.model_copy(update={"state": ()})
    without = Bundle(
        bundle.folder, bundle.manifest.model_copy(update={"signature": plain}), tmp_path
    )
    session = open_session(without, threads=1)
    with pytest.raises(BundleError, match="does not write texts") as caught:
        Generator(without, session)
    assert "cache: true" in str(caught.value.fix)
    with pytest.raises(TargetError, match="keeps nothing from one run to the next"):
        session.extend(feeds([PROMPT], 4))


def test_other_targets_refuse_a_state(exported: OnnxModel, tmp_path: Path) -> None:
    from targets.protocol import source_to_json

    source = Source(exported.path, exported.signature, exported.precision, exported.ranges)
    with pytest.raises(UnsupportedModelError, match="does not run models that keep a state"):
        Commands().lower(
            target="tensorrt_rtx",
            settings={},
            source=source_to_json(source),
            folder=str(tmp_path),
        )


def test_servers_of_models_alone_refuse_a_state(exported: OnnxModel, tmp_path: Path) -> None:
    bundle = lower(exported, "onnxruntime", tmp_path)
    formats = available_formats()
    keeping = {name for name, each in formats.items() if each.keeps_state}
    assert keeping == {"docker", "onnxruntime_genai", "openvino_genai"}
    formats["docker"]().check_target(bundle)
    for name in ("triton", "ovms"):
        with pytest.raises(PackageError, match="does not run models that keep a state") as caught:
            formats[name]().check_target(bundle)
        assert "--for docker" in str(caught.value.fix)


def test_only_language_models_have_something_to_keep(word_model: Any) -> None:
    architecture = Architecture.of(word_model().module)
    with pytest.raises(PassError, match="only language models have keys and values to keep"):
        Export(cache=True).plan(architecture)
    task = get_task("text-classification")
    with pytest.raises(PassError, match="keep nothing from one run to the next"):
        task.with_state(word_model(), task.signature(word_model()))


def test_a_signature_without_a_state_is_written_as_before() -> None:
    ids = TensorSpec(name="ids", dtype="int64", shape=("batch", 4))
    state = StateSpec(name="past", output="now", dtype="float32", shape=("batch", 2, "past", 3))
    plain = Signature(inputs=(ids,), outputs=(ids,))
    assert set(plain.model_dump(mode="json")) == {"inputs", "outputs"}
    assert plain.initial_state(5) == {}
    kept = Signature(inputs=(ids,), outputs=(ids,), state=(state,))
    assert Signature.model_validate(kept.model_dump(mode="json")) == kept
    assert kept.initial_state(5)["past"].shape == (5, 2, 0, 3)


def test_a_text_is_streamed_on_the_command_line(
    model: TorchModel, bundle: Bundle, compressor: Callable[..., Outcome]
) -> None:
    with load_generator(bundle.folder) as generator:
        expected = "".join(generator.stream("w2 w6", max_tokens=5))
    found = compressor(
        "predict", bundle.folder, "--text", "w2 w6", "--stream", "--max-tokens", "5"
    )  # fmt: skip
    assert found.code == 0, found.err
    assert found.out == expected + "\n"
    found = compressor("predict", bundle.folder, "--stream")
    assert found.code == 2
    assert "--stream continues exactly one text" in found.err


def answers_of(model: TorchModel, *messages: tuple[str, str]) -> str:
    """What the untouched model answers in a chat, by transformers alone."""
    chat = [{"role": role, "content": content} for role, content in messages]
    given = model.processor.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    network: Any = model.module
    found = network.generate(given, max_new_tokens=6, do_sample=False, eos_token_id=2)
    return str(model.processor.decode(found[0, given.shape[1] :], skip_special_tokens=True))


def test_a_chat_is_answered_as_by_transformers(
    model: TorchModel, bundle: Bundle, compressor: Callable[..., Outcome]
) -> None:
    expected = [answers_of(model, ("user", text)) for text in ("w2 w6", "w9")]
    with load_generator(bundle.folder) as generator:
        chat = [{"role": "user", "content": "w2 w6"}]
        assert "".join(generator.chat(chat, max_tokens=6)) == expected[0]
    asked = ("predict", bundle.folder, "--chat", "--max-tokens", "6", "--text", "w2 w6")
    found = compressor(*asked, "--text", "w9")
    assert found.code == 0, found.err
    assert [json.loads(line)["text"] for line in found.out.splitlines()] == expected
    found = compressor(*asked, "--stream", "--system", "w11 w3 w3")
    assert found.code == 0, found.err
    assert found.out == answers_of(model, ("system", "w11 w3 w3"), ("user", "w2 w6")) + "\n"


def test_a_text_ends_at_any_of_the_tokens_that_end_it(model: TorchModel, bundle: Bundle) -> None:
    with load_generator(bundle.folder) as generator:
        generator.ends = frozenset()
        expected = list(generator.tokens(PROMPT, max_tokens=12))
    answers = NextTokenAnswers(ends=(22, expected[3]))
    manifest = bundle.manifest.model_copy(update={"answers": answers})
    ended = Bundle(bundle.folder, Manifest.model_validate_json(manifest.model_dump_json()))
    with Generator(ended, open_session(ended, threads=1)) as generator:
        stop = expected.index(expected[3])
        assert list(generator.tokens(PROMPT, max_tokens=12)) == expected[:stop]
        assert generator.ends == {2, 22, expected[3]}


def test_a_chat_without_messages_or_a_template_is_refused(
    exported: OnnxModel, tmp_path: Path, compressor: Callable[..., Outcome]
) -> None:
    found = compressor("predict", tmp_path, "--chat")
    assert found.code == 2
    assert "--chat answers messages: give them with --text" in found.err
    found = compressor("predict", tmp_path, "--text", "w1", "--stream", "--system", "w2")
    assert found.code == 2
    assert "--system belongs to a chat" in found.err
    bundle = lower(exported, "onnxruntime", tmp_path / "bundle")
    (bundle.folder / "chat_template.jinja").unlink()
    Bundle.create(bundle.folder, bundle.manifest)
    found = compressor("predict", bundle.folder, "--chat", "--text", "w1")
    assert found.code == 6
    assert "the bundle has no chat template" in found.err


# How fast they write


def rounds_of(*run_ms: tuple[float, ...]) -> tuple[Round, ...]:
    return tuple(
        Round(run_ns=tuple(int(1e6 * each) for each in times), cpu_ns=1) for times in run_ms
    )


def test_reading_and_writing_are_told_apart() -> None:
    found = Writing(
        threads=1,
        prompt_tokens=100,
        num_tokens=3,
        rounds=rounds_of((50, 9, 11), (40, 4, 6), (100, 19, 21)),
    )
    assert found.first_token_ms == 50
    assert found.first_token_interval == (40, 100)
    assert found.read_per_s == pytest.approx(2000)
    assert found.read_interval == pytest.approx((1000, 2500))
    assert found.written_per_s == pytest.approx(100)
    assert found.written_interval == pytest.approx((50, 200))


def test_a_round_reads_and_writes() -> None:
    with pytest.raises(ValidationError, match="a token written after it"):
        Writing(threads=1, prompt_tokens=100, num_tokens=2, rounds=rounds_of((50.0,)))


def test_a_speed_up_in_writing_is_of_the_tokens_after_the_first() -> None:
    slow, fast = (
        Writing(threads=1, prompt_tokens=100, num_tokens=3, rounds=rounds_of(*times))
        for times in (((1, 20, 40), (1, 40, 40)), ((50, 10, 10), (50, 5, 15)))
    )
    found = writing_speedup(slow, fast)
    assert (found.ratio, found.low, found.high) == pytest.approx((3.5, 3, 4))
    with pytest.raises(ValueError, match="do not pair: 2 and 1"):
        writing_speedup(slow, fast.model_copy(update={"rounds": fast.rounds[:1]}))


def test_bundles_write_side_by_side(bundle: Bundle) -> None:
    lines: list[str] = []
    found = measure_writing(
        {"a": bundle, "b": bundle},
        threads=1,
        prompt_tokens=8,
        num_tokens=4,
        num_rounds=3,
        on_progress=lambda done, total, line: lines.append(line),
    )
    assert list(found) == ["a", "b"]
    for each in found.values():
        assert [len(each.run_ns) for each in each.rounds] == [4, 4, 4]
        assert (each.prompt_tokens, each.num_tokens) == (8, 4)
    assert [line[0] for line in lines if "round" in line] == ["a", "b", "b", "a", "b", "a"]


def test_a_bundle_that_fails_as_it_writes_leaves_the_others(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = Worker.round, []

    def fail_at_the_third(worker: Worker, *given: Any, **more: Any) -> Any:
        seen.append(worker)
        if worker is seen[0] and seen.count(worker) == 3:
            raise TargetError("the device is gone")
        return run(worker, *given, **more)

    monkeypatch.setattr(Worker, "round", fail_at_the_third)
    told: dict[str, ToolkitError] = {}
    asked: Any = {"threads": 1, "prompt_tokens": 8, "num_tokens": 4, "num_rounds": 3}
    found = measure_writing(
        {"a": bundle, "b": bundle},
        **asked,
        on_failure=lambda name, error: told.update({name: error}),
    )
    assert list(found) == ["b"]
    assert len(found["b"].rounds) == 3
    assert str(told["a"].what) == "the device is gone"
    seen.clear()
    with pytest.raises(TargetError, match="the device is gone"):
        measure_writing({"a": bundle}, **asked)


def test_what_cannot_be_written_is_refused_before_any_work(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="longer than the bundle was built for") as caught:
        check_writes(bundle, prompt_tokens=20, num_tokens=5)
    assert caught.value.given == "20 tokens read and 5 written"
    assert caught.value.fix == "use at most 24 in all"
    plain = bundle.manifest.signature.model_copy(update={"state": ()})
    without = Bundle(bundle.folder, bundle.manifest.model_copy(update={"signature": plain}))
    with pytest.raises(BundleError, match="does not write texts"):
        check_writes(without, prompt_tokens=4, num_tokens=5)


def test_bench_tells_how_fast_a_bundle_writes(
    bundle: Bundle, tmp_path: Path, compressor: Callable[..., Outcome]
) -> None:
    arguments = ("bench", bundle.folder, "--sequence-length", "8", "--batch-size", "1")
    found = compressor(
        *arguments, "--rounds", "2", "--write", "4", "--output", tmp_path / "times.json"
    )
    assert found.code == 0, found.err
    said = " ".join((found.out + found.err).split())
    assert "1 with 1 thread, 8 tokens: first token after" in said
    assert "tokens/s" in said
    report = BenchReport.model_validate_json((tmp_path / "times.json").read_bytes())
    [writing] = report.entries[0].writing
    assert (writing.prompt_tokens, writing.num_tokens, len(writing.rounds)) == (8, 4, 2)
    broken = tmp_path / "broken"
    shutil.copytree(bundle.folder, broken)
    Bundle.create(broken, bundle.manifest.model_copy(update={"target": "tensorrt_rtx"}))
    found = compressor(
        "bench", bundle.folder, broken, *arguments[2:], "--rounds", "2", "--write", "4",
        "--output", tmp_path / "some.json",
    )  # fmt: skip
    assert found.code != 0
    report = BenchReport.model_validate_json((tmp_path / "some.json").read_bytes())
    assert [len(entry.writing) for entry in report.entries] == [1, 0]
    refused = compressor(*arguments, "--write", "1")
    assert refused.code == 2
    assert "use at least 2" in " ".join(refused.err.replace("│", " ").split())
