import pytest
import torch
from pydantic import ValidationError

from compressor.errors import PassError
from compressor.passes import PassContext, available_passes
from compressor.passes.finetune import Finetune


@pytest.fixture
def context(word_splits, word_model, tmp_path):
    return PassContext(
        splits=word_splits, load_original=lambda: word_model(), seed=0, folder=tmp_path
    )


def test_discovery_finds_it():
    assert available_passes()["finetune"] is Finetune


def test_it_trains_a_copy(context, word_model):
    model = word_model(num_layers=1)
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    settings = Finetune(epochs=2, batch_size=16, learning_rate=3e-3)
    settings.requires(model, context)
    result = settings.run(model, context)
    now, trained = model.module.state_dict(), result.model.module.state_dict()
    assert all(torch.equal(now[name], before[name]) for name in before)
    assert not all(torch.equal(trained[name], before[name]) for name in before)
    assert 0 <= result.metrics["validation_accuracy"] <= 1
    assert result.history[-1]["epoch"] == 2.0


def test_other_classes_than_those_of_the_data_are_refused(context, word_model):
    model = word_model()
    model.module.config.id2label = {0: "person", 1: "place"}
    with pytest.raises(PassError, match="do not have the same classes") as caught:
        Finetune().requires(model, context)
    assert "compressor finetune" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"learning_rate": 0}, {"keep": "first"}, {"epoch": 3}]
)
def test_settings_have_ranges(wrong):
    with pytest.raises(ValidationError):
        Finetune(**wrong)
