import copy
import dataclasses

import numpy as np
import pytest
import torch

from compressor.errors import PassError
from compressor.passes.distill import Distill
from compressor.passes.prune import Prune
from compressor.tasks import get_task
from compressor.tasks.text import text_rows
from compressor.training import distillation
from compressor.training.augmentation import Material
from compressor.training.batches import collator, encode
from compressor.training.distillation import distill, distillation_loss
from compressor.training.losses import logits_kl
from compressor.training.settings import DistillSettings
from compressor.training.taps import TappedOutputs
from compressor.training.teacher import Teacher, TeacherMemory
from tests.compressor.writers import FAMILIES

TASK = get_task("text-classification")
SETTINGS = DistillSettings(epochs=8, batch_size=16, learning_rate=3e-3)


@pytest.fixture
def run(word_model, word_splits, tmp_path):
    def train(
        student,
        teacher,
        *,
        settings=SETTINGS,
        layer_map=None,
        seed=0,
        folder="work",
        splits=word_splits,
        memory=None,
    ):
        return distill(
            student,
            teacher,
            splits,
            settings,
            layer_map=layer_map,
            seed=seed,
            folder=tmp_path / folder,
            progress=lambda fraction, line: None,
            memory=memory,
        )

    return train


def divergence(student, teacher, split):
    """From the teacher, in nats; each model reads the text with its own tokenizer."""
    logits = []
    for model in (student, teacher):
        rows = encode(model, split)
        batch = collator(model)(rows)
        with torch.inference_mode():
            outputs = model.module(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
        logits.append(outputs.logits)
    return logits_kl(*logits, temperature=1.0).item()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation_copies": None},
        {"augmentation": 0.0, "labels_weight": 0.0},
        {"relation_weight": 1.0, "relation_heads": 4},
        {"hidden_weight": 0.0},
    ],
    ids=str,
)
def test_student_comes_closer_to_its_teacher(run, word_model, word_splits, changes):
    teacher = word_model(seed=1)
    student = word_model(num_layers=1, seed=2)
    settings = SETTINGS.model_copy(update=changes)
    trained = run(student, teacher, settings=settings).model
    before = divergence(student, teacher, word_splits.validation)
    assert divergence(trained, teacher, word_splits.validation) < 0.75 * before


def test_student_and_teacher_stay_as_they_were(run, word_model):
    student, teacher = word_model(num_layers=1), word_model(seed=1)
    before = [
        {name: tensor.clone() for name, tensor in each.module.state_dict().items()}
        for each in (student, teacher)
    ]
    trained = run(student, teacher).model
    for model, state in zip((student, teacher), before, strict=True):
        now = model.module.state_dict()
        assert all(torch.equal(now[name], state[name]) for name in state)
        assert not any(len(part._forward_hooks) for part in model.module.modules())
    assert not trained.module.training
    assert all(each.requires_grad for each in trained.module.parameters())
    assert not any(len(part._forward_hooks) for part in trained.module.modules())


def test_projection_for_another_hidden_size_is_thrown_away(run, word_model, word_splits):
    teacher, student = word_model(seed=1), word_model(num_layers=1, hidden_size=16, seed=2)
    trained = run(student, teacher).model
    assert trained.module.state_dict().keys() == student.module.state_dict().keys()
    before = divergence(student, teacher, word_splits.validation)
    assert divergence(trained, teacher, word_splits.validation) < before


def test_outputs_from_memory_train_like_outputs_made_anew(run, word_model):
    models = word_model(num_layers=1), word_model(seed=1)
    live = SETTINGS.model_copy(update={"cache_mib": 0, "epochs": 2})
    remembered = SETTINGS.model_copy(update={"epochs": 2})
    first = run(*models, settings=live, folder="a").history[-1]["loss"]
    second = run(*models, settings=remembered, folder="b").history[-1]["loss"]
    assert first == pytest.approx(second, rel=1e-3)


def test_states_from_a_file_train_like_those_from_memory(run, word_model, monkeypatch):
    models = word_model(num_layers=1), word_model(seed=1)
    settings = SETTINGS.model_copy(update={"epochs": 2})
    expected = run(*models, settings=settings, folder="a").model.module.state_dict()
    kept = []

    class Forgetful(Teacher):
        def remember(self, *arguments, limit_bytes, **keywords):
            kept.append(super().remember(*arguments, limit_bytes=10_000, **keywords))
            assert not isinstance(kept[-1].states.values, torch.Tensor)
            return kept[-1]

    monkeypatch.setattr(distillation, "Teacher", Forgetful)
    found = run(*models, settings=settings, folder="b").model.module.state_dict()
    assert len(kept) == 1
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_short_training_is_the_same_with_what_a_longer_one_asked(run, word_model):
    """The teacher labels copies that a short one does not come to, in batches of their own."""
    models = word_model(num_layers=1), word_model(seed=1)
    short = SETTINGS.model_copy(update={"epochs": 2, "augmentation_copies": 5})
    expected = run(*models, settings=short, folder="a").model.module.state_dict()
    memory = TeacherMemory()
    found = run(*models, settings=short, folder="b", memory=memory).model.module.state_dict()
    assert not memory.is_empty
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_trainings_that_follow_one_another_ask_the_teacher_once(
    run, word_model, word_splits, tmp_path, monkeypatch
):
    """Also of other layers, of other students and with other epochs; not on other rows."""
    asked = []
    real = Teacher.remember

    def remember(self, variants, *arguments, **keywords):
        asked.append(len(variants))
        return real(self, variants, *arguments, **keywords)

    monkeypatch.setattr(Teacher, "remember", remember)
    teacher, memory = word_model(num_layers=3, seed=1), TeacherMemory()
    settings = SETTINGS.model_copy(update={"epochs": 2})

    def weights(student, folder, memory, splits=word_splits, settings=settings, **keywords):
        trained = run(
            student, teacher, settings=settings, folder=folder, memory=memory, splits=splits,
            **keywords,
        )  # fmt: skip
        return trained.model.module.state_dict()

    def same(first, second):
        return all(torch.equal(first[name], second[name]) for name in first)

    low, high = ((0, 0),), ((0, 2),)
    shared = [
        weights(word_model(num_layers=1), "a", memory, layer_map=low),
        weights(word_model(num_layers=1), "b", memory, layer_map=high),
        weights(word_model(num_layers=2, seed=5), "c", memory, layer_map=((0, 1), (1, 2))),
    ]
    longer = settings.model_copy(update={"epochs": 7})
    weights(word_model(num_layers=1), "d", memory, settings=longer, layer_map=low)
    assert asked == [4 * len(word_splits.train)]  # clean, and three copies
    alone = [
        weights(word_model(num_layers=1), "e", TeacherMemory(), layer_map=low),
        weights(word_model(num_layers=1), "f", TeacherMemory(), layer_map=high),
        weights(word_model(num_layers=2, seed=5), "g", TeacherMemory(), layer_map=((0, 1), (1, 2))),
    ]
    assert all(map(same, shared, alone))
    assert not same(shared[0], shared[1])
    del asked[:]
    few = dataclasses.replace(word_splits, train=word_splits.train.take(range(32)))
    weights(word_model(num_layers=1), "h", memory, few, layer_map=low)
    other = settings.model_copy(update={"augmentation": 0.1})
    weights(word_model(num_layers=1), "i", memory, settings=other, layer_map=low)
    assert asked == [4 * 32, 4 * len(word_splits.train)]
    memory.close()
    weights(word_model(num_layers=1), "j", memory, settings=other, layer_map=low)
    assert asked == [4 * 32, *[4 * len(word_splits.train)] * 2]


def long_texts(word_model, vocabulary):
    """A model that reads six tokens, a text of four words and one of forty."""
    model = dataclasses.replace(word_model(), max_length=6)
    texts = [" ".join(vocabulary[:4]), " ".join(vocabulary[:20] * 2)]
    return model, texts, text_rows(TASK.tokenized(model, texts))


def test_the_rest_of_a_long_text_is_read_in_noisy_rows(word_model, vocabulary):
    model, texts, rows = long_texts(word_model, vocabulary)
    settings = SETTINGS.model_copy(update={"augmentation": 0.3, "augmentation_windows": 1.0})
    noise = TASK.noise(model, Material(rows, texts), settings, 0)
    whole = model.processor(texts[1])["input_ids"]
    seen = set()
    for epoch in range(0, 6, 2):  # the second row is noisy in these
        made = noise(rows[1], 1, epoch)
        assert made["noisy"] == 1
        ids = made["input_ids"]
        starts = [place for place in range(len(whole)) if whole[place : place + 4] == ids[1:-1]]
        assert starts
        assert (ids[0], ids[-1]) == (whole[0], whole[-1])
        seen.add(starts[0])
    assert len(seen) > 1
    assert noise.beyond
    without = TASK.noise(model, Material(rows), settings, 0)
    assert without(rows[0], 0, 1) == noise(rows[0], 0, 1)  # it was not cut


@pytest.mark.parametrize("name", ["token-classification", "translation"])
def test_where_places_count_no_other_stretch_is_read(word_model, vocabulary, name):
    model, texts, rows = long_texts(word_model, vocabulary)
    settings = SETTINGS.model_copy(update={"augmentation_windows": 1.0})
    task = get_task(name)
    reader = task.source if name == "translation" else task
    model = dataclasses.replace(model, task=name)
    material = Material(rows, () if name == "translation" else texts)
    noise = reader.noise(model, material, settings, 0)
    assert not noise.beyond


def test_a_student_with_other_patches_learns_from_the_logits(run, vision_model, image_splits):
    teacher, student = vision_model("vit"), small_patches(vision_model)
    settings = SETTINGS.model_copy(update={"epochs": 1})
    run(student, teacher, settings=settings, splits=image_splits)
    asked = settings.model_copy(update={"hidden_weight": 2.0})
    with pytest.raises(PassError, match="different numbers of parts") as error:
        run(student, teacher, settings=asked, splits=image_splits, folder="asked")
    assert "student 65, teacher 17" in str(error.value)


def small_patches(vision_model):
    from transformers import AutoModelForImageClassification

    plain = vision_model("vit", seed=1)
    config = copy.deepcopy(plain.module.config)
    config.patch_size = 2
    module = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    return dataclasses.replace(plain, module=module.eval())


def test_padding_of_what_is_written_does_not_count():
    states = torch.zeros(1, 4, 2), torch.ones(1, 4, 2)
    student, teacher = (TappedOutputs(torch.zeros(1, 4, 3), (each,), ()) for each in states)
    teacher.hidden[0][:, :2] = 0  # they differ in the last two places
    batch = {
        "labels": torch.tensor([[1, 2, -100, -100]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "noisy": torch.zeros(1),
    }
    settings = DistillSettings(logits_weight=0.0, labels_weight=0.0, hidden_weight=1.0)
    task = get_task("token-classification")
    loss = distillation_loss(student, teacher, batch, settings, task=task, decoders={0})
    assert loss.item() == 0
    assert distillation_loss(student, teacher, batch, settings, task=task).item() > 0


def test_padding_of_what_is_written_does_not_count_in_relations():
    """Here the source, of the same length, has its padding elsewhere."""
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 1, 4, 8)
    theirs[:, :2] = ours[:, :2]  # they differ in the last two places
    student, teacher = (TappedOutputs(torch.zeros(1, 4, 3), (), (each,)) for each in (ours, theirs))
    batch = {
        "labels": torch.tensor([[1, 2, -100, -100]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "noisy": torch.zeros(1),
    }
    settings = DistillSettings(
        logits_weight=0.0, labels_weight=0.0, hidden_weight=0.0, relation_weight=1.0,
        relation_heads=2,
    )  # fmt: skip
    task = get_task("token-classification")
    loss = distillation_loss(student, teacher, batch, settings, task=task, decoders={0})
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(student, teacher, batch, settings, task=task).item() > 0.01


def test_the_layers_of_a_decoder_are_known(word_model):
    model = dataclasses.replace(word_model(), module=FAMILIES["marian"]())
    pairs = ((0, 0), (1, 1), (2, 2), (3, 3))
    assert distillation._decoders(model, pairs) == {2, 3}
    assert distillation._decoders(model, ()) == frozenset()


def test_a_short_training_has_only_those_versions_labelled_that_it_sees(run, word_model):
    models = word_model(num_layers=1), word_model(seed=1)
    short = SETTINGS.model_copy(update={"epochs": 3, "augmentation_copies": 2})
    long = short.model_copy(update={"augmentation_copies": 9})
    assert [each.with_copies_seen().augmentation_copies for each in (short, long)] == [2, 2]
    unlimited = SETTINGS.model_copy(update={"augmentation_copies": None})
    assert unlimited.with_copies_seen() == unlimited
    weights = [
        run(*models, settings=settings, folder=str(number)).model.module.state_dict()
        for number, settings in enumerate((short, long))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_layer_map_decides_which_layers_are_compared(run, word_model):
    models = word_model(num_layers=1), word_model(seed=1)
    low = run(*models, layer_map=((0, 0),), folder="low").model.module.state_dict()
    high = run(*models, layer_map=((0, 1),), folder="high").model.module.state_dict()
    even = run(*models, folder="even").model.module.state_dict()
    assert all(torch.equal(even[name], high[name]) for name in even)
    assert not all(torch.equal(low[name], high[name]) for name in low)


def test_student_with_a_smaller_vocabulary_in_another_order(
    run, word_model, word_splits, vocabulary
):
    teacher = word_model(seed=1)
    words = [*reversed(vocabulary[:20]), "new"]
    student = word_model(num_layers=1, seed=2, words=words)
    trained = run(student, teacher).model
    before = divergence(student, teacher, word_splits.validation)
    assert divergence(trained, teacher, word_splits.validation) < 0.75 * before


@pytest.mark.parametrize(
    ("changes", "layer_map", "message"),
    [
        ({}, ((0, 2),), "the layer map does not fit"),
        ({}, (), "the layer map does not fit"),
        ({"relation_weight": 1.0, "relation_heads": 5}, None, "relation_heads does not divide"),
    ],
)
def test_what_does_not_fit_is_named(run, word_model, changes, layer_map, message):
    settings = SETTINGS.model_copy(update=changes)
    with pytest.raises(PassError, match=message) as caught:
        run(word_model(num_layers=1), word_model(), settings=settings, layer_map=layer_map)
    assert caught.value.fix


def test_other_classes_are_refused(run, word_model):
    student = word_model()
    student.module.config.id2label = {0: "person", 1: "time", 2: "place"}
    with pytest.raises(PassError, match="do not have the same classes"):
        run(student, word_model())


def outputs(logits):
    return TappedOutputs(torch.tensor(logits), (), ())


def test_labels_count_on_clean_rows_only():
    batch = {
        "attention_mask": torch.ones(2, 1),
        "labels": torch.tensor([0, 1]),
        "noisy": torch.tensor([0, 1]),
    }
    settings = DistillSettings(logits_weight=0.0, labels_weight=2.0)
    student = outputs([[1.0, 0.0], [3.0, -3.0]])
    found = distillation_loss(student, outputs([[0.0, 0.0]] * 2), batch, settings, task=TASK)
    assert found.item() == pytest.approx(2 * np.log(1 + np.exp(-1)))


def test_a_batch_of_noisy_rows_only_has_a_finite_loss():
    batch = {
        "attention_mask": torch.ones(1, 1),
        "labels": torch.tensor([0]),
        "noisy": torch.tensor([1]),
    }
    student = outputs([[1.0, 0.0]])
    assert distillation_loss(student, student, batch, DistillSettings(), task=TASK).item() == 0


def test_unlabeled_texts_teach_what_the_teacher_says_of_them(
    run, word_model, word_splits, tmp_path
):
    """On these texts the student comes closer to the teacher than without them."""
    teacher, student = word_model(seed=1), word_model(num_layers=1, seed=2)
    listed = tmp_path / "more.txt"
    listed.write_text("\n\n".join(word_splits.train.inputs[16:]) + "\n")
    few = dataclasses.replace(word_splits, train=word_splits.train.take(range(16)))
    others = word_splits.train.take(range(16, len(word_splits.train)))
    found = {}
    for path, epochs in ((None, 180), (listed, 30)):  # as many steps
        changes = {
            "unlabeled": path,
            "epochs": epochs,
            "augmentation": 0.0,
            "hidden_weight": 0.0,
            "labels_weight": 0.0,
        }
        settings = SETTINGS.model_copy(update=changes)
        trained = run(student, teacher, settings=settings, folder=f"{epochs}", splits=few)
        found[path] = divergence(trained.model, teacher, others)
    assert found[listed] < 0.75 * found[None]


def test_unlabeled_texts_have_no_label(run, word_model, word_splits, tmp_path, monkeypatch):
    seen = []
    real = distillation.distillation_loss

    def watch(student, teacher, batch, settings, **keywords):
        seen.extend(batch["labels"].tolist())
        return real(student, teacher, batch, settings, **keywords)

    monkeypatch.setattr(distillation, "distillation_loss", watch)
    listed = tmp_path / "more.txt"
    listed.write_text("who w1 w2\nwhere w3\n")
    settings = SETTINGS.model_copy(update={"epochs": 1, "unlabeled": listed})
    run(word_model(num_layers=1, seed=2), word_model(seed=1), settings=settings)
    assert sorted(seen) == sorted([*word_splits.train.labels.tolist(), -100, -100])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "lists nothing"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_of_unlabeled_texts_that_holds_none_is_refused(
    word_model, tmp_path, content, message
):
    path = tmp_path / "more.txt"
    path.write_bytes(content)
    with pytest.raises(PassError, match=message) as caught:
        distillation.read_unlabeled(path, word_model())
    assert caught.value.where == str(path)


def test_lines_end_where_lines_end_and_no_mark_is_read(word_model, tmp_path):
    path = tmp_path / "more.txt"
    path.write_bytes("\ufeffwho w1\u2028w2\r\nwhere\x0cw3\n".encode())
    assert distillation.read_unlabeled(path, word_model()) == ["who w1\u2028w2", "where\x0cw3"]


def test_files_that_are_listed_count_as_inputs(tmp_path):
    (tmp_path / "frames").mkdir()
    for name in ("a.png", "frames/1.png", "frames/0.png", "other.png"):
        (tmp_path / name).write_bytes(b"")
    listed = tmp_path / "more.txt"
    listed.write_text("a.png\nframes\n\nno file at all\n" + "x" * 5000 + "\n\0\n")
    files = Distill(unlabeled=listed).input_files
    assert [str(each.relative_to(tmp_path)) for each in files] == [
        "more.txt", "a.png", "frames/0.png", "frames/1.png",
    ]  # fmt: skip
    recovered = Prune(ratio=0.5, recovery=DistillSettings(unlabeled=listed))
    assert recovered.input_files == files
    assert Distill().input_files == ()


def test_unlabeled_images_are_paths_from_the_folder_of_the_list(vision_model, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    path = tmp_path / "more.txt"
    path.write_text("a.png\n")
    model = vision_model("vit")
    assert distillation.read_unlabeled(path, model) == [str(tmp_path / "a.png")]
    path.write_text("a.png\nb.png\n")
    with pytest.raises(
        PassError, match="a file of the unlabeled image inputs does not exist"
    ) as caught:
        distillation.read_unlabeled(path, model)
    assert caught.value.given == str(tmp_path / "b.png")


def test_an_absent_file_of_unlabeled_texts_is_told_before_the_run(tmp_path):
    settings = SETTINGS.model_copy(update={"unlabeled": tmp_path / "none.txt"})
    with pytest.raises(PassError, match="the file of unlabeled inputs does not exist"):
        settings.check_unlabeled()
