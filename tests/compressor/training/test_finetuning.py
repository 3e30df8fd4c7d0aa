import json

import pytest
import torch
from transformers import BertModel, RobertaConfig, RobertaForMaskedLM, T5Config, T5EncoderModel

from compressor.errors import CheckpointError
from compressor.training.finetuning import finetune, new_classifier
from compressor.training.settings import FinetuneSettings

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def encoder_folder(word_model, tmp_path):
    """A bare encoder, as sentence encoders come."""
    model = word_model(seed=5)
    model.module.bert.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    return tmp_path


def test_encoder_gets_a_fresh_head_with_the_names(encoder_folder):
    model = new_classifier(encoder_folder, NAMES, max_length=12)
    assert model.labels == NAMES
    assert model.module.config.label2id == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert model.module.classifier.out_features == 4
    assert model.max_length == 12
    assert not model.module.training


def test_encoder_keeps_its_weights(encoder_folder):
    found = new_classifier(encoder_folder, NAMES).module.bert.state_dict()
    expected = BertModel.from_pretrained(encoder_folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_head_depends_on_the_seed_only(encoder_folder):
    heads = [
        new_classifier(encoder_folder, NAMES, seed=seed).module.classifier.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_for_other_classes_is_replaced(word_model, tmp_path):
    model = word_model()
    model.module.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    assert new_classifier(tmp_path, NAMES).module.classifier.out_features == 4


def test_a_masked_language_checkpoint_without_a_pooler(word_model, tmp_path):
    config = RobertaConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path)
    word_model().processor.save_pretrained(tmp_path)
    assert len(new_classifier(tmp_path, NAMES).labels) == 4


def test_a_fresh_classifier_saves_and_comes_back(encoder_folder, tmp_path):
    model = new_classifier(encoder_folder, NAMES)
    model.save(tmp_path / "saved")
    again = type(model).load(tmp_path / "saved")
    ids = torch.tensor([[2, 5, 9, 3]])
    assert torch.equal(model.module(input_ids=ids).logits, again.module(input_ids=ids).logits)


def test_a_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        new_classifier(tmp_path, NAMES)
    for name in ("pytorch_model.bin", "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="the weights are a pickle") as caught:
        new_classifier(tmp_path, NAMES)
    assert "save_pretrained" in str(caught.value)


def test_a_missing_part_of_the_encoder_is_named(encoder_folder):
    from safetensors.torch import load_file, save_file

    path = encoder_folder / "model.safetensors"
    state = load_file(path)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks a part of the encoder") as caught:
        new_classifier(encoder_folder, NAMES)
    assert "encoder.layer.1.output.dense.weight" in str(caught.value)


def test_a_damaged_checkpoint_is_refused(encoder_folder):
    path = encoder_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="the file is truncated"):
        new_classifier(encoder_folder, NAMES)


SETTINGS = FinetuneSettings(
    epochs=12, batch_size=16, learning_rate=5e-3, train_word_embeddings=True, warmup=0.1
)


def run(model, splits, folder, settings=SETTINGS):
    return finetune(
        model, splits, settings, seed=0, folder=folder, progress=lambda fraction, line: None
    )


def test_finetuning_learns_the_task(word_model, word_splits, tmp_path):
    result = run(word_model(num_layers=1), word_splits, tmp_path)
    assert result.metrics["validation_accuracy"] > 0.8
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert result.metrics["num_steps"] == 72


def test_history_has_steps_epochs_rates_and_accuracies(word_model, word_splits, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 3, "evaluate_every": 2})
    history = run(word_model(num_layers=1), word_splits, tmp_path, settings).history
    assert [entry["step"] for entry in history] == list(range(1, 19))
    assert all(entry["learning_rate"] >= 0 and entry["loss"] > 0 for entry in history)
    evaluated = [entry["epoch"] for entry in history if "validation_accuracy" in entry]
    assert evaluated == [2.0, 3.0]


def test_reported_accuracy_is_that_of_the_returned_model(word_model, word_splits, tmp_path):
    from compressor.training.batches import collator, encode

    result = run(word_model(num_layers=1), word_splits, tmp_path)
    rows = encode(result.model, word_splits.validation)
    batch = collator(result.model)(rows)
    labels = batch.pop("labels")
    with torch.inference_mode():
        found = (result.model.module(**batch).logits.argmax(-1) == labels).float().mean()
    assert found.item() == pytest.approx(result.metrics["validation_accuracy"])


@pytest.mark.parametrize("trained", [True, False])
def test_word_embeddings_learn_only_where_asked(word_model, word_splits, tmp_path, trained):
    settings = SETTINGS.model_copy(update={"epochs": 1, "train_word_embeddings": trained})
    model = word_model(num_layers=1)
    result = run(model, word_splits, tmp_path, settings)
    tables = [each.module.get_input_embeddings().weight.detach() for each in (model, result.model)]
    assert torch.equal(*tables) is not trained
    assert all(each.requires_grad for each in result.model.module.parameters())


def test_dropout_is_as_before_afterwards(word_model, word_splits, tmp_path):
    settings = SETTINGS.model_copy(update={"epochs": 1, "dropout": 0.4})
    result = run(word_model(num_layers=1), word_splits, tmp_path, settings)
    rates = {part.p for part in result.model.module.modules() if isinstance(part, torch.nn.Dropout)}
    assert rates == {0.1}


def test_a_model_without_a_classification_head_is_refused(word_model, tmp_path):
    T5EncoderModel(
        T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4)
    ).save_pretrained(tmp_path)
    word_model().processor.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        new_classifier(tmp_path, NAMES)


# Images


@pytest.mark.parametrize("family", ["vit", "dinov2", "resnet", "efficientnet-lite"])
def test_an_image_model_gets_a_fresh_head_and_keeps_its_weights(vision_model, tmp_path, family):
    start = vision_model(family)
    start.save(tmp_path)
    model = new_classifier(tmp_path, NAMES, task="image-classification")
    assert model.labels == NAMES
    assert model.processor == start.processor
    assert not model.module.training
    ours = getattr(model.module, model.module.base_model_prefix).state_dict()
    theirs = getattr(start.module, start.module.base_model_prefix).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "resnet"])
def test_an_image_model_is_brought_to_another_size(vision_model, tmp_path, family):
    vision_model(family).save(tmp_path)
    model = new_classifier(tmp_path, NAMES, task="image-classification", image_size=24)
    assert (model.processor.height, model.processor.width) == (24, 24)
    assert model.processor.shortest_edge == 27
    with torch.no_grad():
        assert model.module(torch.rand(2, 3, 24, 24)).logits.shape == (2, 4)


def test_an_image_model_that_does_not_take_its_images_is_refused(vision_model, tmp_path):
    vision_model("vit", size=24).save(tmp_path)
    with pytest.raises(CheckpointError, match="does not take the images that its preprocessing"):
        new_classifier(tmp_path, NAMES, task="image-classification")


def test_a_head_with_a_teacher_becomes_the_usual_one(vision_model, tmp_path):
    start = vision_model("deit")
    start.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["DeiTForImageClassificationWithTeacher"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = new_classifier(tmp_path, NAMES, task="image-classification")
    assert type(model.module).__name__ == "DeiTForImageClassification"


def test_images_are_learnt(vision_model, image_splits, tmp_path):
    settings = FinetuneSettings(epochs=2, batch_size=32)
    start = vision_model("vit")
    result = finetune(
        start, image_splits, settings, seed=0, folder=tmp_path, progress=lambda *_: None
    )
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < losses[0]
