"""Language models as a task: checkpoints, texts as their own labels, perplexity, training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    MambaConfig,
    MambaForCausalLM,
    Olmo2Config,
    SmolLM3Config,
)

from compressor.answering import answer
from compressor.architecture import Architecture
from compressor.data import DataSpec, Splits, read_splits
from compressor.errors import CheckpointError, DataError, PassError
from compressor.evaluation import paired_perplexity
from compressor.model import OnnxModel, TorchModel
from compressor.passes.base import PassContext
from compressor.passes.distill import Distill
from compressor.passes.drop_layers import DropLayers
from compressor.passes.export import Export
from compressor.passes.finetune import Finetune
from compressor.passes.prune import Prune
from compressor.passes.quantize import Quantize
from compressor.pruning.layers import select_layers
from compressor.tasks import get_task, infer_task
from compressor.training import losses
from compressor.training.losses import logits_kl
from targets.answers import IGNORED, NextTokenAnswers
from targets.scoring import perplexity
from tests.compressor.decoders import (
    CHAT_TEMPLATE,
    CONFIGS,
    SIZES,
    TASK,
    make_decoder,
    make_plain_split,
    plain_splits,
    write_decoder,
)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return plain_splits()


@pytest.fixture(params=CONFIGS)
def decoder(request: pytest.FixtureRequest) -> TorchModel:
    return make_decoder(request.param)


def context_of(splits: Splits, folder: Path, original: TorchModel) -> PassContext:
    return PassContext(
        splits=splits.without_test(), load_original=lambda: original, seed=0, folder=folder
    )


def own_losses(model: TorchModel, texts: tuple[str, ...]) -> list[float]:
    """The mean loss of each text, as transformers computes it."""
    found = []
    for text in texts:
        ids = torch.tensor([model.processor(text)["input_ids"][: model.max_length]])
        with torch.inference_mode():
            found.append(float(model.module(input_ids=ids, labels=ids).loss))
    return found


def found_perplexity(model: TorchModel | OnnxModel, splits: Splits) -> float:
    units = answer(model, splits.validation)
    assert units.losses is not None
    return perplexity(units.losses)


def model_of(config: Any) -> TorchModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    return replace(make_decoder(), module=module)


def test_layers_that_stay_are_those_of_before_once_the_model_is_saved(tmp_path: Path) -> None:
    """Only every second one of SmolLM3 turns queries and keys by their places."""
    sizes = {**SIZES, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}
    model = model_of(SmolLM3Config(**sizes))
    fewer = replace(model, module=select_layers(model.module, (1, 2)))
    assert fewer.module.config.no_rope_layers == [0, 1]
    fewer.save(tmp_path)
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = fewer.module(input_ids=ids).logits
        found = TorchModel.load(tmp_path).module(input_ids=ids).logits
        other = select_layers(model.module, (0, 3))(input_ids=ids).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, other)


def test_heads_that_are_normalized_together_stay(tmp_path: Path) -> None:
    model_of(Olmo2Config(**SIZES)).save(tmp_path)
    architecture = Architecture.read(tmp_path)
    with pytest.raises(PassError, match="normalizes the queries and keys of all heads") as caught:
        Prune(heads=0.5).plan(architecture)
    assert "model_type olmo2" in str(caught.value.given)
    assert Prune(ffn=0.5).plan(architecture).layers[0].ffn_width == 24


def test_a_network_that_keeps_something_else_is_told_to_leave_the_cache_out() -> None:
    config = MambaConfig(
        vocab_size=23, hidden_size=16, num_hidden_layers=1, state_size=4, conv_kernel=2
    )
    model = replace(make_decoder(), module=MambaForCausalLM(config).eval())
    task = get_task(TASK)
    with pytest.raises(PassError, match="something other than keys and values") as caught:
        task.with_state(model, task.signature(model))
    assert caught.value.given == "model_type mamba"
    assert "cache: false" in str(caught.value.fix)


def test_the_losses_are_those_of_transformers(decoder: TorchModel) -> None:
    split = make_plain_split(10, 5)
    units = answer(decoder, split)
    assert units.losses is not None
    means = [float(units.losses[units.rows == row].mean()) for row in range(10)]
    np.testing.assert_allclose(means, own_losses(decoder, split.inputs), rtol=1e-5)
    counts = [len(text.split()) - 1 for text in split.inputs]
    assert np.bincount(units.rows).tolist() == counts


def test_a_checkpoint_is_loaded_with_its_tokenizer_and_chats(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    assert infer_task(tmp_path / "model") == TASK
    task = get_task(TASK)
    model = task.load_checkpoint(tmp_path / "model")
    assert (model.max_length, model.labels) == (64, ())  # the model's limit, below the usual one
    assert task.load_checkpoint(tmp_path / "model", max_length=16).max_length == 16
    model.save(tmp_path / "again")
    again = TorchModel.load(tmp_path / "again")
    assert again.processor.chat_template == CHAT_TEMPLATE
    chat = [{"role": "user", "content": "w1 w2"}]
    found = again.processor.apply_chat_template(chat, tokenize=False)
    assert found == "<s> w1 w2 </s>"
    assert again.processor.pad_token_id == 2
    names = {path.name for path in task.processor_files(tmp_path / "again")}
    assert names == {
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    "stored",
    [
        "{{ messages }}",
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "{{ messages }}"}],
    ],
)
def test_a_chat_template_may_stand_in_the_config(tmp_path: Path, stored: object) -> None:
    write_decoder(tmp_path)
    (tmp_path / "model" / "chat_template.jinja").unlink()
    path = tmp_path / "model" / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "chat_template": stored}
    path.write_text(json.dumps(config))
    assert get_task(TASK).load_processor(tmp_path / "model").chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("named", "ends"), [([5, 7], (5, 7, 2)), (7, (7, 2)), ([2], (2,)), (None, (2,))]
)
def test_what_ends_a_text_is_kept(tmp_path: Path, named: object, ends: tuple[int, ...]) -> None:
    write_decoder(tmp_path)
    task, path = get_task(TASK), tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": named}), encoding="utf-8")
    model = task.load_checkpoint(tmp_path / "model")
    assert task.answers_with(model.processor) == NextTokenAnswers(ends=ends)
    model.clone().save(tmp_path / "again")
    assert task.answers_with(task.load_processor(tmp_path / "again")).ends == ends
    settings = GenerationConfig.from_pretrained(tmp_path / "again")
    assert settings.eos_token_id == list(ends)


def test_what_cannot_end_a_text_is_told(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    path = tmp_path / "model" / "generation_config.json"
    path.write_text('{"eos_token_id": ["</s>"]}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="does not say how a text ends") as caught:
        get_task(TASK).load_checkpoint(tmp_path / "model")
    assert caught.value.where == str(path)
    assert caught.value.given == "eos_token_id: '</s>' is not a token id"
    assert "to a list of such numbers" in str(caught.value.fix)


def test_a_classifier_is_no_language_model(word_model: Any, tmp_path: Path) -> None:
    word_model().save(tmp_path)
    with pytest.raises(CheckpointError, match="no head for this task \\(CausalLM\\)"):
        get_task(TASK).load_checkpoint(tmp_path)


def test_a_network_that_sees_what_comes_after_is_no_language_model(tmp_path: Path) -> None:
    """BERT's class for it, without the setting that makes it one."""
    model = make_decoder()
    config = BertConfig(
        vocab_size=len(model.processor), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=24, max_position_embeddings=40,
    )  # fmt: skip
    torch.manual_seed(0)
    for is_causal in (True, False):
        config.is_decoder = is_causal
        config.initializer_range = 0.5
        folder = tmp_path / str(is_causal)
        BertLMHeadModel(config).save_pretrained(folder)
        model.processor.save_pretrained(folder)
        assert infer_task(folder) == TASK
    get_task(TASK).load_checkpoint(tmp_path / "True")
    with pytest.raises(CheckpointError, match="sees the tokens that it is to predict") as caught:
        get_task(TASK).load_checkpoint(tmp_path / "False")
    assert "set is_decoder in config.json" in str(caught.value.fix)


def test_a_llama_whose_config_is_older_than_grouped_queries(tmp_path: Path) -> None:
    write_decoder(tmp_path)
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    heads = config["num_attention_heads"]
    path.write_text(json.dumps({**config, "num_key_value_heads": None}))
    expected = Architecture.read(tmp_path / "model")
    del config["num_key_value_heads"]
    path.write_text(json.dumps(config))
    assert Architecture.read(tmp_path / "model") == expected
    assert expected.layers[0].num_heads == heads
    assert expected.queries_per_head == 1


def test_each_token_is_the_label_of_the_one_before_it() -> None:
    model = make_decoder()
    [row] = get_task(TASK).encode_labelled(model, split_of("w0 w1 w2"))
    assert (row["input_ids"], row["labels"]) == ([3, 4, 5], [4, 5, IGNORED])


def split_of(text: str) -> Any:
    return replace(make_plain_split(1, 0), inputs=(text,))


# Data


def read(folder: Path, content: str, suffix: str = "csv") -> Splits:
    path = folder / f"texts.{suffix}"
    path.write_text(content, encoding="utf-8")
    spec = DataSpec(train=path, test=path)
    return read_splits(spec, label_names=(), labels="text")


def test_texts_need_no_labels(tmp_path: Path) -> None:
    found = read(tmp_path, "text\n" + "".join(f"a text {number}\n" for number in range(20)))
    assert (len(found.train), len(found.validation), len(found.test)) == (18, 2, 20)
    assert found.label_names == ()
    assert found.test.inputs[3] == "a text 3"


@pytest.mark.parametrize(
    ("content", "message", "where", "fix"),
    [
        (
            "txt\na\nb\n",
            "the text column 'text' is missing",
            "texts.csv",
            "name it: --input COLUMN",
        ),
        ("text\na\n  \n", "a row has no text", "row 2", "remove the row"),
        ("text\n", "the file has no rows", "texts.csv", "pass a file with rows"),
    ],
)
def test_what_is_no_data_is_told(
    tmp_path: Path, content: str, message: str, where: str, fix: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, content)
    assert where in str(caught.value.where)
    assert fix in str(caught.value.fix)


def test_a_folder_holds_no_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="texts are read from a table") as caught:
        read_splits(DataSpec(train=tmp_path, test=tmp_path), label_names=(), labels="text")
    assert "the column text" in str(caught.value.fix)


# Perplexity


def test_a_rise_of_perplexity_is_paired_by_text() -> None:
    generator = np.random.default_rng(0)
    rows = np.repeat(np.arange(50), 10)
    reference = generator.gamma(2, 1, 50)[rows] + generator.normal(0, 0.1, 500)
    found = paired_perplexity(reference, reference + 0.01, rows)
    assert found.value == pytest.approx(math.exp(reference.mean() + 0.01))
    assert found.reference == pytest.approx(math.exp(reference.mean()))
    for rise in (found.rise, found.rise_low, found.rise_high):  # the same in all texts
        assert rise == pytest.approx(100 * math.expm1(0.01))
    spread = math.log(found.high / found.low) / 2
    means = reference.reshape(50, 10).mean(axis=1)
    assert spread == pytest.approx(1.96 * means.std() / math.sqrt(50), rel=0.15)


# Training and export


def test_distillation_brings_back_what_dropping_a_layer_cost(
    splits: Splits, tmp_path: Path
) -> None:
    model = make_decoder()
    context = context_of(splits, tmp_path, model)
    student = DropLayers(num_layers=2).run(model, context).model
    distill = Distill(epochs=4, batch_size=16, learning_rate=3e-3, augmentation=0.0)
    found = distill.run(student, context).model
    teacher = answer(model, splits.validation).classes
    before, after = (
        float((answer(each, splits.validation).classes == teacher).mean())
        for each in (student, found)
    )
    assert after > before + 0.1


def test_finetuning_lowers_the_perplexity(splits: Splits, tmp_path: Path) -> None:
    model = make_decoder("gpt2")
    pass_ = Finetune(epochs=4, batch_size=16, learning_rate=5e-3, train_word_embeddings=True)
    context = context_of(splits, tmp_path, model)
    pass_.requires(model, context)
    tuned = pass_.run(model, context).model
    assert isinstance(tuned, TorchModel)
    assert found_perplexity(tuned, splits) < found_perplexity(model, splits) / 2
    tied: Any = tuned.module
    assert tied.lm_head.weight is tied.transformer.wte.weight


def test_the_best_weights_are_those_of_the_least_perplexity(splits: Splits, tmp_path: Path) -> None:
    model = make_decoder("gpt2")
    training = Finetune(
        epochs=12, batch_size=8, learning_rate=1e-2, schedule="constant", keep="best",
        train_word_embeddings=True,
    )  # fmt: skip
    few = replace(splits, train=make_plain_split(32, 1))  # soon learnt by heart
    result = training.run(model, context_of(few, tmp_path, model))
    assert isinstance(result.model, TorchModel)
    by_epoch = [each for each in result.history if "validation_perplexity" in each]
    best = min(by_epoch, key=lambda each: each["validation_perplexity"])
    most_accurate = max(by_epoch, key=lambda each: each["validation_accuracy"])
    assert best not in (by_epoch[-1], most_accurate)  # else this would prove nothing
    found = found_perplexity(result.model, splits)
    assert found == pytest.approx(best["validation_perplexity"], rel=1e-2)  # of bfloat16
    assert result.metrics["validation_perplexity"] == best["validation_perplexity"]
    assert result.metrics["validation_accuracy"] == best["validation_accuracy"]


def test_an_exported_model_gives_the_same_perplexity(
    decoder: TorchModel, splits: Splits, tmp_path: Path
) -> None:
    context = context_of(splits, tmp_path, decoder)
    exported = Export().run(decoder, context).model
    assert isinstance(exported, OnnxModel)
    expected = found_perplexity(decoder, splits)
    assert found_perplexity(exported, splits) == pytest.approx(expected, rel=1e-4)
    quantized = Quantize(method="weights").run(exported, context).model
    assert isinstance(quantized, OnnxModel)
    assert quantized.size_bytes < exported.size_bytes
    assert found_perplexity(quantized, splits) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("chunk", [1, 100, 23 * 7])
def test_the_divergence_of_many_logits_is_that_of_its_parts(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 23, generator=generator) for _ in range(2))
    found: list[Callable[[], Any]] = []
    for limit in (2**23, chunk):
        monkeypatch.setattr(losses, "_CHUNK", limit)
        logits = student.clone().requires_grad_()
        loss = logits_kl(logits, teacher, temperature=2.0)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), logits.grad))  # type: ignore[arg-type]
    for whole, parts in zip(*found, strict=True):  # type: ignore[call-overload]
        torch.testing.assert_close(parts, whole)


def test_a_drop_with_many_texts_and_a_large_vocabulary() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 150_000, 9000)
    rows = np.arange(9000) // 2
    before = np.where(random.random(9000) < 0.9, labels, 149_999)
    after = np.where(random.random(9000) < 0.7, labels, 0)
    found = get_task(TASK).drop(before, after, labels, rows)
    wanted = 100 * ((before == labels).mean() - (after == labels).mean())
    assert found[0] == pytest.approx(wanted)
    assert found[1] < wanted < found[2]
