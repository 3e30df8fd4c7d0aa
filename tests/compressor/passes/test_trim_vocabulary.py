from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from compressor.data import Split, Splits
from compressor.embeddings import rows_that_stay, trim_embeddings
from compressor.errors import PassError
from compressor.model import TorchModel
from compressor.passes import PassContext
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.tasks import get_task

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
WORDS = ["who", "where", "when", "dog", "cat", "house", "never", "used"]
TOKENS = [*SPECIAL[:3], "[unused]", *SPECIAL[3:], *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {name: index for index, name in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 0))
    tokenizer.add_special_tokens(SPECIAL)
    names = {f"{each.strip('[]').lower()}_token": each for each in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def bert(**changes: object) -> BertConfig:
    options = {"vocab_size": len(TOKENS) + 3, "pad_token_id": 1, "intermediate_size": 32}
    return BertConfig(**{**SMALL, **options, "max_position_embeddings": 40, **changes})


def make_module(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "bert":
        return BertForSequenceClassification(bert()).eval()
    if family == "roberta":
        config = RobertaConfig(**{**bert().to_dict(), "bos_token_id": 0, "eos_token_id": 2})
        return RobertaForSequenceClassification(config).eval()
    config = DistilBertConfig(
        vocab_size=len(TOKENS), dim=16, n_layers=1, n_heads=2, hidden_dim=32, pad_token_id=1
    )
    return DistilBertForSequenceClassification(config).eval()


def make_model(family: str = "bert") -> TorchModel:
    return TorchModel(make_module(family), make_tokenizer(), "text-classification", 32)


@pytest.fixture
def context(tmp_path: Path) -> PassContext:
    labels = torch.tensor([0, 1, 0]).numpy()
    train = Split(("who dog", "where cat", "when zebra"), labels)
    validation = Split(("who house", "where", "cat"), labels)
    splits = Splits(train, validation, validation, ("LABEL_0", "LABEL_1"))
    return PassContext(splits, lambda: make_model(), seed=0, folder=tmp_path)


def logits(model: TorchModel, texts: list[str]) -> torch.Tensor:
    task = get_task(model.task)
    batch = task.collate(model, task.encode(model, texts))
    feeds = {name: torch.from_numpy(array) for name, array in batch.items()}
    with torch.no_grad():
        result: torch.Tensor = model.module(**feeds).logits
    return result


SETTINGS = TrimVocabulary(keep_first=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_covered_text_has_the_same_logits_to_the_bit(family: str, context: PassContext) -> None:
    model = make_model(family)
    result = SETTINGS.run(model, context)
    SETTINGS.ensures(model, result, context)
    texts = ["who dog", "where cat when", "cats zebra", "w"]
    assert torch.equal(logits(model, texts), logits(result.model, texts))


def test_words_that_the_training_text_lacks_are_gone(context: PassContext) -> None:
    model = make_model()
    result = SETTINGS.run(model, context)
    vocabulary = result.model.processor.get_vocab()
    assert {"who", "dog", *SPECIAL, *LETTERS} <= set(vocabulary)
    assert not {"house", "never", "used"} & set(vocabulary)
    config = result.model.module.config
    assert config.vocab_size == len(vocabulary) == result.metrics["num_tokens"]
    assert config.pad_token_id == vocabulary["[PAD]"]
    rows = result.model.module.get_input_embeddings().weight.shape[0]
    assert rows == len(vocabulary)


def test_metrics_tell_the_cost_and_the_gain(context: PassContext) -> None:
    model = make_model()
    metrics = SETTINGS.run(model, context).metrics
    assert metrics["validation_changed_rate"] == pytest.approx(1 / 3)  # "house" is gone
    assert metrics["validation_unknown_rate"] == metrics["validation_unknown_rate_before"] == 0
    gone = len(TOKENS) + 3 - metrics["num_tokens"]
    assert metrics["saved_bytes"] == 4 * 16 * gone


def test_the_input_is_not_changed_and_the_result_repeats(context: PassContext) -> None:
    model = make_model()
    weights = copy.deepcopy(model.module.state_dict())
    tokenizer, config = model.processor.backend_tokenizer.to_str(), model.module.config.to_dict()
    first = SETTINGS.run(model, context).model
    second = SETTINGS.run(model, context).model
    assert model.processor.backend_tokenizer.to_str() == tokenizer
    assert model.module.config.to_dict() == config
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, weights[name])
    one, other = first.processor.backend_tokenizer, second.processor.backend_tokenizer
    assert one.to_str() == other.to_str()
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name])


def test_a_trimmed_model_survives_the_disk(context: PassContext, tmp_path: Path) -> None:
    model = SETTINGS.run(make_model("roberta"), context).model
    model.save(tmp_path / "saved")
    loaded = TorchModel.load(tmp_path / "saved")
    texts = ["who dog", "cats zebra when where"]
    assert torch.equal(logits(model, texts), logits(loaded, texts))


def test_roberta_keeps_the_place_of_the_padding_token(context: PassContext) -> None:
    model = make_model("roberta")
    result = SETTINGS.run(model, context)
    assert result.model.module.config.pad_token_id == 1


def test_a_family_that_counts_from_the_padding_token_keeps_all_before_it() -> None:
    roberta = RobertaForSequenceClassification(
        RobertaConfig(**{**bert().to_dict(), "pad_token_id": 4, "eos_token_id": 2})
    )
    assert set(rows_that_stay(roberta)) >= {0, 1, 2, 3, 4}
    assert rows_that_stay(BertForSequenceClassification(bert(pad_token_id=4))) == [4, 4]


def test_tied_output_layers_follow() -> None:
    torch.manual_seed(0)
    before = BertForMaskedLM(bert()).eval()
    torch.nn.init.normal_(before.cls.predictions.bias)
    after = copy.deepcopy(before)
    kept = torch.tensor([0, 1, 2, 5, 9, 30]).numpy()
    trim_embeddings(after, kept)
    ids = torch.tensor([[0, 3, 4, 5, 2]])
    with torch.no_grad():
        old = before(input_ids=torch.from_numpy(kept)[ids]).logits
        new = after(input_ids=ids).logits
    # Products of other widths may round differently.
    torch.testing.assert_close(old[..., torch.from_numpy(kept)], new, atol=1e-6, rtol=1e-6)
    assert after.get_output_embeddings().weight is after.get_input_embeddings().weight


def test_extra_text_and_the_first_tokens_are_kept(context: PassContext, tmp_path: Path) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("a used house\n", encoding="utf-8")
    settings = TrimVocabulary(keep_first=4, min_count=3, extra_text=(extra,))
    settings.requires(make_model(), context)
    vocabulary = settings.run(make_model(), context).model.processor.get_vocab()
    assert {"used", "house", "[unused]"} <= set(vocabulary)
    assert not {"never", "who"} & set(vocabulary)


def test_of_too_many_tokens_those_of_the_training_and_extra_text_stay(
    context: PassContext, tmp_path: Path
) -> None:
    extra = tmp_path / "extra.txt"
    extra.write_text("used used used\n", encoding="utf-8")
    free = TrimVocabulary(keep_first=1000, extra_text=(extra,))
    bounded = free.model_copy(update={"max_tokens": 1})
    whole, safe = (
        set(each.run(make_model(), context).model.processor.get_vocab()) for each in (free, bounded)
    )
    assert safe < whole
    one_more = free.model_copy(update={"max_tokens": len(safe) + 1})
    result = one_more.run(make_model(), context)
    one_more.ensures(make_model(), result, context)
    assert set(result.model.processor.get_vocab()) - safe == {"used"}


def test_missing_and_broken_extra_text_is_named(context: PassContext, tmp_path: Path) -> None:
    with pytest.raises(PassError, match="do not exist") as caught:
        TrimVocabulary(extra_text=(tmp_path / "absent.txt",)).requires(make_model(), context)
    assert "absent.txt" in str(caught.value)
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PassError, match="cannot be read") as caught:
        TrimVocabulary(extra_text=(broken,)).run(make_model(), context)
    assert "UTF-8" in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(context: PassContext) -> None:
    module = BertForSequenceClassification(bert(vocab_size=20)).eval()
    with pytest.raises(PassError, match="more tokens than the model has embeddings"):
        SETTINGS.run(replace(make_model(), module=module), context)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: model.module.get_input_embeddings().weight[3].add_(1), "a weight that"),
        (lambda model: model.module.classifier.bias.add_(1e-6), "a weight that"),
        (lambda model: setattr(model.module, "forward", _noisy(model.module)), "the outputs"),
    ],
)
def test_a_broken_promise_is_found(
    damage: Callable[[TorchModel], None], message: str, context: PassContext
) -> None:
    model = make_model()
    result = SETTINGS.run(model, context)
    with torch.no_grad():
        damage(result.model)
    with pytest.raises(PassError, match=message):
        SETTINGS.ensures(model, result, context)


def _noisy(module: torch.nn.Module) -> Callable[..., object]:
    forward = module.forward

    def run(**feeds: torch.Tensor) -> object:
        outputs = forward(**feeds)
        outputs.logits = outputs.logits + 1e-5
        return outputs

    return run


def test_a_vocabulary_that_fits_is_left_as_it_is(
    word_model: Callable[..., TorchModel], word_splits: Splits, tmp_path: Path
) -> None:
    model = word_model()
    context = PassContext(word_splits, word_model, seed=0, folder=tmp_path)
    result = TrimVocabulary().run(model, context)
    TrimVocabulary().ensures(model, result, context)
    assert result.metrics["saved_bytes"] == 0
