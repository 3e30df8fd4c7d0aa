"""Triton's configuration says of a model what its signature says, and is well-formed text."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from compressor.errors import PackageError
from compressor.serving import Packaged
from compressor.serving._pbtxt import Message, to_text
from compressor.serving.triton import Triton
from targets import Bundle, Signature, TensorSpec
from targets.preprocessing import QuestionPreprocessing

MakeBundle = Callable[..., Bundle]
Package = Callable[..., tuple[Path, Packaged]]
Fields = dict[str, list[Any]]

TOKEN = re.compile(r'\s*([A-Za-z_]\w*|-?\d+|"(?:[^"\\\n]|\\.)*"|[{}:])')
CLIENT = "tritonclient==2.73.0"


def read(text: str) -> Fields:
    """Protobuf text as name -> values; a message is again such a mapping."""
    tokens = []
    while text.strip():
        match = TOKEN.match(text)
        assert match is not None, text[:60]
        tokens.append(match.group(1))
        text = text[match.end() :]
    return read_message(iter(tokens), closed_by=None)


def read_message(tokens: Iterator[str], *, closed_by: str | None) -> Fields:
    fields: Fields = {}
    for name in tokens:
        if name == closed_by:
            return fields
        assert name.isidentifier(), name
        sign = next(tokens)
        assert sign in "{:"
        inside = read_message(tokens, closed_by="}") if sign == "{" else scalar(next(tokens))
        fields.setdefault(name, []).append(inside)
    assert closed_by is None
    return fields


def scalar(token: str) -> Any:
    if not token.startswith('"'):
        return int(token) if token.lstrip("-").isdecimal() else token
    known = {"n": b"\n", "r": b"\r", "t": b"\t", '"': b'"', "\\": b"\\"}
    parts = re.findall(r'\\([0-7]{3})|\\([nrt"\\])|([^\\])', token[1:-1])
    raw = (bytes([int(a, 8)]) if a else known[b] if b else c.encode("ascii") for a, b, c in parts)
    return b"".join(raw).decode()


def read_config(folder: Path, name: str = "small") -> Fields:
    return read((folder / name / "config.pbtxt").read_text(encoding="utf-8"))


def parameters(config: Fields) -> dict[str, str]:
    return {
        each["key"][0]: each["value"][0]["string_value"][0] for each in config.get("parameters", [])
    }


# The text format


class Color(StrEnum):
    RED = "RED"


class Inner(Message):
    text: str


class Outer(Message):
    text: str = "t"
    number: int = -1
    flag: bool = True
    color: Color = Color.RED
    absent: str | None = None
    many: tuple[int, ...] = (1, 2)
    inner: tuple[Inner, ...] = (Inner(text="a"), Inner(text="b"))
    entries: dict[str, Inner] = {"k": Inner(text="v")}  # noqa: RUF012  (pydantic copies it)


def test_every_kind_of_field_is_written() -> None:
    assert read(to_text(Outer())) == {
        "text": ["t"],
        "number": [-1],
        "flag": ["true"],
        "color": ["RED"],
        "many": [1, 2],
        "inner": [{"text": ["a"]}, {"text": ["b"]}],
        "entries": [{"key": ["k"], "value": [{"text": ["v"]}]}],
    }


@pytest.mark.parametrize(
    "text", ['"', "\\", '\\"', "\n}\nname: 1", "\x00\x1f\x7f", "ü 日本", "\\101", "%s{{}}", "'", ""]
)
def test_no_text_gets_out_of_its_quotes(text: str) -> None:
    written = to_text(Inner(text=text))
    assert written.isascii()
    assert written.count("\n") == 1
    assert read(written) == {"text": [text]}


# The configuration


def test_a_model_of_onnx_runtime(make_bundle: MakeBundle, package: Package) -> None:
    folder, _ = package(make_bundle("onnxruntime"), "triton", threads=2, instances=3)
    config = read_config(folder)
    assert config["name"] == ["small"]
    assert config["backend"] == ["onnxruntime"]
    assert config["default_model_filename"] == ["model.onnx"]
    assert config["max_batch_size"] == [32]
    assert config["input"] == [
        {"name": [name], "data_type": ["TYPE_INT64"], "dims": [-1]}
        for name in ("input_ids", "attention_mask")
    ]
    assert config["output"] == [
        {
            "name": ["logits"],
            "data_type": ["TYPE_FP32"],
            "dims": [3],
            "label_filename": ["labels.txt"],
        }
    ]
    assert config["instance_group"] == [{"count": [3], "kind": ["KIND_CPU"]}]
    assert config["dynamic_batching"] == [{"max_queue_delay_microseconds": [100]}]
    assert parameters(config)["intra_op_thread_count"] == "2"
    assert parameters(config)["inter_op_thread_count"] == "1"
    assert (folder / "small/labels.txt").read_text() == "person\nplace\ntime\n"


def test_batching_is_as_the_user_says(make_bundle: MakeBundle, package: Package) -> None:
    options = {"max_batch_size": 16, "queue_delay_us": 0, "preferred_batch_sizes": (4, 8)}
    config = read_config(package(make_bundle(), "triton", **options)[0])
    assert config["max_batch_size"] == [16]
    assert config["dynamic_batching"] == [
        {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": [0]}
    ]
    config = read_config(package(make_bundle(), "triton", max_batch_size=0)[0])
    assert config["input"][0]["dims"] == [-1, -1]
    assert config["output"][0]["dims"] == [-1, 3]
    assert "dynamic_batching" not in config


def test_a_model_of_openvino(make_bundle: MakeBundle, package: Package) -> None:
    folder, packaged = package(make_bundle("openvino"), "triton")
    config = read_config(folder)
    assert config["backend"] == ["openvino"]
    assert config["default_model_filename"] == ["model.xml"]
    # The backend would fix the batch at its maximum and pad every smaller one.
    assert config["max_batch_size"] == [0]
    assert config["input"][0]["dims"] == [-1, -1]
    assert parameters(config) == {
        "TARGET_DEVICE": "CPU",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
    }
    assert "small/1/model.bin" in packaged.files
    assert any("INFERENCE_PRECISION_HINT=f32" in note for note in packaged.notes)
    config = read_config(package(make_bundle("openvino"), "triton", max_batch_size=8)[0])
    assert parameters(config)["ENABLE_BATCH_PADDING"] == "YES"


def test_bf16_is_asked_for_as_the_backend_has_it(make_bundle: MakeBundle, package: Package) -> None:
    bundle = make_bundle("openvino", options={"INFERENCE_PRECISION_HINT": "bf16"})
    folder, packaged = package(bundle, "triton", threads=2, instances=2)
    found = parameters(read_config(folder))
    assert found["HINT_BF16"] == "YES"
    assert (found["INFERENCE_NUM_THREADS"], found["NUM_STREAMS"]) == ("2", "2")
    assert not any("HINT" in note for note in packaged.notes)


@pytest.mark.parametrize("server", ["triton", "ovms"])
def test_a_server_has_no_models_of_fixed_lengths(
    server: str, make_bundle: MakeBundle, package: Package
) -> None:
    _, packaged = package(make_bundle("openvino", options={"LENGTHS": [8, 16]}), server)
    assert any("model of free length" in note for note in packaged.notes)
    _, packaged = package(make_bundle("openvino"), server)
    assert not any("model of free length" in note for note in packaged.notes)


@pytest.mark.parametrize(
    ("target", "settings", "kind"),
    [
        ("onnxruntime", {"device": "cuda"}, "KIND_GPU"),
        ("onnxruntime", {"device": "cpu"}, "KIND_CPU"),
        ("openvino", {"device": "GPU"}, "KIND_CPU"),
        ("tensorrt", {}, "KIND_GPU"),
    ],
)
def test_instances_are_where_the_bundle_is_for(
    target: str, settings: dict[str, str], kind: str, make_bundle: MakeBundle, package: Package
) -> None:
    made = make_bundle(settings=settings)
    changed = made.manifest.model_copy(update={"target": target})
    folder, _ = package(Bundle.create(made.folder, changed), "triton")
    config = read_config(folder)
    assert config["backend"] == [target]
    assert config["instance_group"][0]["kind"] == [kind]


def test_options_that_the_backend_cannot_be_told_are_named(
    make_bundle: MakeBundle, package: Package
) -> None:
    bundle = make_bundle("onnxruntime", precision="int8")
    entries = bundle.manifest.options["session"]
    assert entries
    _, packaged = package(bundle, "triton")
    for key, value in entries.items():
        assert any(f"{key}={value}" in note for note in packaged.notes)


def test_the_new_name_is_told(make_bundle: MakeBundle, package: Package) -> None:
    folder, packaged = package(make_bundle(name="a/b"), "triton")
    assert packaged.notes[0] == "the server knows the model as a-b"
    assert "made with onnxruntime 1." in packaged.notes[1]
    assert (folder / "a-b/config.pbtxt").is_file()
    folder, packaged = package(make_bundle(name="a/b"), "triton", served_name="mine")
    assert packaged.name == "mine"
    assert not any("knows the model as" in note for note in packaged.notes)


def test_tensor_names_cannot_break_the_configuration(
    make_bundle: MakeBundle, package: Package
) -> None:
    name = 'x" }\nbackend: "evil\\'
    spec = TensorSpec(name=name, dtype="float16", shape=("n", 4, "m"))
    signature = Signature(inputs=(spec,), outputs=(spec,))
    folder, _ = package(make_bundle(signature=signature, labels=()), "triton")
    config = read_config(folder)
    assert config["backend"] == ["onnxruntime"]
    assert config["input"] == [{"name": [name], "data_type": ["TYPE_FP16"], "dims": [4, -1]}]
    assert "label_filename" not in config["output"][0]
    assert not (folder / "small/labels.txt").exists()


def test_labels_take_one_line_each(make_bundle: MakeBundle, package: Package) -> None:
    folder, _ = package(make_bundle(labels=("a\nb", "c\u2028d", "e")), "triton")
    assert (folder / "small/labels.txt").read_text(encoding="utf-8") == "a b\nc d\ne\n"


def spec(dtype: str = "float32", *shape: int | str) -> TensorSpec:
    return TensorSpec(name="x", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (Signature(inputs=(spec("complex64", "n", 1),), outputs=(spec(),)), "no free batch"),
        (Signature(inputs=(spec("float32", 2, 3),), outputs=(spec("float32", 2, 3),)), "no free"),
        (
            Signature(inputs=(spec("float32", "n", 3),), outputs=(spec("float32", "m", 3),)),
            "no free batch dimension",
        ),
        (
            Signature(inputs=(spec("complex64", "n"),), outputs=(spec("float32", "n"),)),
            "no such data type",
        ),
    ],
)
def test_a_signature_that_triton_cannot_batch_is_refused(
    signature: Signature, message: str, make_bundle: MakeBundle, package: Package
) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        package(make_bundle(signature=signature), "triton")
    assert "signature" in str(caught.value.where)
    assert caught.value.fix


def test_options_without_effect_are_refused(make_bundle: MakeBundle, package: Package) -> None:
    with pytest.raises(ValidationError, match="no effect without text=true"):
        Triton(length_multiple=8)
    with pytest.raises(ValidationError, match="queue_delay_us have no effect"):
        Triton(max_batch_size=0, queue_delay_us=5)
    with pytest.raises(PackageError, match="does not batch bundles") as caught:
        package(make_bundle("openvino"), "triton", queue_delay_us=5)
    assert caught.value.where == "--set queue_delay_us"
    with pytest.raises(PackageError, match="larger than max_batch_size") as caught:
        package(make_bundle(), "triton", max_batch_size=8, preferred_batch_sizes=(4, 16))
    assert "8" in str(caught.value.fix)


# Text


def test_text_goes_through_a_tokenizer_and_an_ensemble(
    make_bundle: MakeBundle, package: Package
) -> None:
    bundle = make_bundle()
    folder, packaged = package(bundle, "triton", text=True, length_multiple=8)
    model, tokenizer, ensemble = (
        read_config(folder, f"small{suffix}") for suffix in ("", "-tokenizer", "-text")
    )
    assert tokenizer["output"] == model["input"]
    assert tokenizer["input"] == ensemble["input"]
    assert tokenizer["input"] == [{"name": ["text"], "data_type": ["TYPE_STRING"], "dims": [1]}]
    assert ensemble["output"] == model["output"]
    assert ensemble["platform"] == ["ensemble"]
    assert parameters(tokenizer) == {
        "max_length": str(bundle.manifest.preprocessing.max_length),
        "pad_token_id": "0",
        "length_multiple": "8",
    }
    steps = ensemble["ensemble_scheduling"][0]["step"]
    assert [each["model_name"] for each in steps] == [["small-tokenizer"], ["small"]]
    made = {each["value"][0] for each in steps[0]["output_map"]}
    assert made == {each["value"][0] for each in steps[1]["input_map"]}
    assert "small-tokenizer/1/tokenizer.json" in packaged.files
    assert (folder / "small-text/1").is_dir()
    compile((folder / "small-tokenizer/1/model.py").read_text(), "model.py", "exec")


def test_an_input_that_is_no_text_is_refused(make_bundle: MakeBundle, package: Package) -> None:
    signature = Signature(inputs=(spec("float32", "n", 3),), outputs=(spec("float32", "n", 3),))
    with pytest.raises(PackageError, match="input that text does not provide") as caught:
        package(make_bundle(signature=signature), "triton", text=True)
    assert caught.value.given == "x"


def test_a_model_of_questions_takes_no_text(make_bundle: MakeBundle, package: Package) -> None:
    how = QuestionPreprocessing(max_length=24, pad_token_id=0)
    with pytest.raises(PackageError, match="takes no text") as caught:
        package(make_bundle(preprocessing=how), "triton", text=True)
    assert caught.value.given == "a model of questions"
    assert caught.value.fix == "leave text=true out"


# The published definition


@pytest.mark.slow
def test_the_published_definition_reads_the_same(
    make_bundle: MakeBundle, package: Package, published: Callable[..., Path]
) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    path = published(CLIENT) / "tritonclient" / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    for target, options in (("onnxruntime", {"text": True}), ("openvino", {"max_batch_size": 4})):
        folder, _ = package(make_bundle(target, labels=('"', "b", "c")), "triton", **options)
        configs = sorted(folder.glob("*/config.pbtxt"))
        assert configs
        for each in configs:
            parsed = text_format.Parse(each.read_text(encoding="utf-8"), module.ModelConfig())
            again = read(text_format.MessageToString(parsed))
            written = read(each.read_text(encoding="utf-8"))
            written = {key: value for key, value in written.items() if value != [0]}
            assert again.keys() == written.keys()
            assert parsed.name == each.parent.name


@pytest.mark.parametrize(
    ("server", "target", "options", "told"),
    [
        ("triton", "openvino", {"NUM_STREAMS": 2}, "NUM_STREAMS=2"),
        ("ovms", "openvino", {"ENABLE_CPU_PINNING": True}, "ENABLE_CPU_PINNING=True"),
        ("triton", "onnxruntime", {"optimization": "basic"}, "optimization=basic"),
        ("triton", "onnxruntime", {}, None),
    ],
)
def test_what_was_tuned_and_is_not_passed_on_is_told(
    server: str,
    target: str,
    options: dict[str, object],
    told: str | None,
    make_bundle: MakeBundle,
    package: Package,
) -> None:
    threads = None if told is None else 2
    _, packaged = package(make_bundle(target, options=options, max_threads=threads), server)
    notes = [note for note in packaged.notes if "was tuned to run with" in note]
    if told is None:
        assert notes == []
    else:
        assert notes[0].startswith(
            f"the bundle was tuned to run with {told}, at most 2 threads, which is not passed on"
        )
