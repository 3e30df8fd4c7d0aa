"""What every pass has to stand, whoever wrote it: one suite for all that discovery finds."""

from __future__ import annotations

import hashlib
import pickle
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

from compressor.architecture import Architecture
from compressor.data import Split, Splits
from compressor.errors import RecipeError
from compressor.model import Model, OnnxModel, TorchModel, load_model
from compressor.onnx_io import load_model as load_model_proto
from compressor.onnx_io import weights_size_bytes
from compressor.passes import Pass, PassContext, PassResult, available_passes
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.recipe import load_recipe
from compressor.recipe.schema import component_entry
from compressor.tasks import get_task
from tests.compressor.conftest import make_image_splits, make_vision
from tests.compressor.writers import SPEECH, make_writer
from tests.compressor.writers import make_splits as speech_splits

DOCUMENT = Path(__file__).parents[3] / "docs" / "add-a-pass.md"
SHORT = {"epochs": 1, "batch_size": 16}
CHECKPOINT = object()
"""Stands for the folder of a checkpoint, where a pass takes one."""

# Settings to test a pass with. A pass that is not here is tested with its defaults. One that takes
# an ONNX model is given an exported one.
EXAMPLES: dict[str, tuple[dict[str, Any], ...]] = {
    "distill": ({**SHORT, "num_layers": 1, "layer_map": ((0, 1),)},),
    "drop_blocks": ({"ratio": 0.5}, {"blocks": ("efficientnet_lite.blocks.2",)}),
    "drop_layers": ({"keep": (1,)}, {"num_layers": 1, "strategy": "importance"}),
    "finetune": (SHORT,),
    "merge_tokens": ({"ratio": 0.5},),
    "prune": (
        {"ratio": 0.5},
        {"heads": 0.25, "hidden": 0.25, "importance": "magnitude"},
        {"ffn": 0.5, "recovery": {**SHORT, "augmentation": 0.0, "augmentation_copies": None}},
        {"ratio": 0.5, "hidden": 0.25, "steps": 2, "refit": True},
        {"ratio": 0.5, "importance": "second-order", "refit": True},
        {"shape": ({"layer": 1, "heads": 2, "ffn": 24},), "refit": True},
    ),
    "quantize": (
        {"method": "static", "calibration": "minmax", "smooth_quant": 0.5, "num_samples": 20},
        {"method": "dynamic", "weight_bits": 7},
        {"method": "weights"},
        {"method": "fp16"},
        {"method": "bf16"},
    ),
    "student": ({"checkpoint": CHECKPOINT},),
    "trim_vocabulary": ({"keep_first": 0},),
}

# Passes that are unsuited to classifiers of texts: a model of another kind, and data for it.
SUITED: dict[str, Callable[[], tuple[TorchModel, Splits]]] = {
    "drop_blocks": lambda: (make_vision("efficientnet-lite"), make_image_splits()),
    "merge_tokens": lambda: (make_vision("vit"), make_image_splits()),
    "variable_window": lambda: (make_writer("whisper"), speech_splits(SPEECH)),
}

# What a plan cannot know, because the data or the loaded network decides it.
UNPLANNED = {"drop_blocks": ("num_other_parameters",), "trim_vocabulary": ("vocabulary_size",)}

TOPICS = ("who is the king", "where is the river", "when is the battle")


class _Sealed(Split):
    """The test split, which no pass may look at."""

    def __init__(self) -> None:
        """Hold nothing."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise AssertionError(f"the pass read {name!r} of the test split")


@dataclass(frozen=True)
class Trial:
    """A pass that was run twice on the same model, and what that left."""

    step: Pass
    source: Model
    splits: Splits
    source_before: str
    source_after: str
    splits_before: str
    splits_after: str
    results: tuple[PassResult, PassResult]
    folders: tuple[Path, Path]


def make_splits() -> Splits:
    def split(num_rows: int, seed: int) -> Split:
        generator = random.Random(seed)
        labels = [row % 3 for row in range(num_rows)]
        rest = [
            " ".join(generator.choices("abcdefghij", k=generator.randint(0, 8))) for _ in labels
        ]
        texts = (
            f"{TOPICS[label]} {tail}".strip() for label, tail in zip(labels, rest, strict=True)
        )
        return Split(tuple(texts), np.array(labels, np.int64))

    return Splits(split(42, 1), split(18, 2), _Sealed(), ("person", "place", "time"))


def hash_folder(folder: Path) -> dict[str, str]:
    """File name -> sha256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fingerprint(model: Model) -> str:
    """The sha256 of all that a pass could change."""
    if isinstance(model, OnnxModel):
        return repr((hash_folder(model.folder), replace(model)))
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    config: Any = model.module.config
    digest.update(config.to_json_string(use_diff=False).encode())
    with tempfile.TemporaryDirectory() as folder:
        get_task(model.task).save_processor(model.processor, Path(folder))
        digest.update(repr(hash_folder(Path(folder))).encode())
    for name, module in model.module.named_modules():
        digest.update(
            f"{name} {type(module)} {module.training} {len(module._forward_hooks)}".encode()
        )
    for name, parameter in model.module.named_parameters():
        digest.update(f"{name} {parameter.requires_grad} {parameter.grad is None}".encode())
    return digest.hexdigest()


def data_fingerprint(splits: Splits) -> str:
    parts = [(part.inputs, part.labels) for part in (splits.train, splits.validation)]
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


def run_once(
    step: Pass, source: Model, original: TorchModel, folder: Path, splits: Splits | None = None
) -> PassResult:
    """Run a pass as the manager does."""
    folder.mkdir(parents=True)
    context = PassContext(splits or make_splits(), original.clone, seed=5, folder=folder)
    step.requires(source, context)
    result = step.run(source, context)
    step.ensures(source, result, context)
    return result


def make_trial(
    step: Pass,
    source: Model,
    original: TorchModel,
    folder: Path,
    splits: Splits | None = None,
) -> Trial:
    splits = splits or make_splits()
    before, splits_before = fingerprint(source), data_fingerprint(splits)
    results, folders = [], []
    for number in range(2):
        # Not even the state of the global generators may have an effect.
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        results.append(run_once(step, source, original, folder / f"work-{number}", splits))
        folders.append(folder / f"result-{number}")
        results[-1].model.save(folders[-1])
    return Trial(
        step,
        source,
        splits,
        before,
        fingerprint(source),
        splits_before,
        data_fingerprint(splits),
        (results[0], results[1]),
        (folders[0], folders[1]),
    )


def outputs(model: Model, splits: Splits) -> NDArray[np.generic]:
    """Logits for the validation data, in one padded batch."""
    task = get_task(model.task)
    batch = task.collate(model, task.encode(model, splits.validation.inputs))
    if isinstance(model, TorchModel):
        with torch.inference_mode():
            feeds = {name: torch.from_numpy(array) for name, array in batch.items()}
            logits: NDArray[np.generic] = model.module(**feeds).logits.numpy()
            return logits
    from targets.runtimes.onnxruntime import create_session

    [found] = create_session(model.path, optimization="none").run(None, batch)
    return np.asarray(found)


def check_the_input_is_unchanged(trial: Trial, folder: Path) -> None:
    assert trial.source_after == trial.source_before
    assert trial.splits_after == trial.splits_before


def check_the_same_seed_gives_the_same_bytes(trial: Trial, folder: Path) -> None:
    first, second = map(hash_folder, trial.folders)
    assert first
    assert first == second
    assert trial.results[0].notes == trial.results[1].notes


def check_settings_survive_a_recipe(trial: Trial, folder: Path) -> None:
    step = trial.step
    assert type(step).model_validate(step.settings()) == step
    path = folder / "recipe.yaml"
    document = {
        "model": "model",
        "data": {"train": "train.csv", "test": "test.csv"},
        "passes": [component_entry(step, "pass")],
        "targets": ["onnxruntime"],
    }
    path.write_text(yaml.safe_dump(document))
    recipe = load_recipe(path)
    assert recipe.passes == (step,)
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(path).passes == (step,)


def check_the_result_has_the_promised_form(trial: Trial, folder: Path) -> None:
    assert trial.source.form == trial.step.consumes
    for result in trial.results:
        assert result.model.form == trial.step.produces
        assert result.model.labels == trial.source.labels
        assert result.model.task == trial.source.task
        assert result.model.max_length == trial.source.max_length
        assert all(isinstance(value, int | float) for value in result.metrics.values())
        assert all(note and "\n" not in note for note in result.notes)
        assert isinstance(result.notes, tuple)


def check_the_plan_is_what_comes_out(trial: Trial, folder: Path) -> None:
    if not isinstance(trial.source, TorchModel):
        return  # only torch models have an architecture
    planned = trial.step.plan(Architecture.of(trial.source.module), width_multiple=8)
    result = trial.results[0].model
    if not isinstance(result, TorchModel):
        assert planned == Architecture.of(trial.source.module)
        return
    found = Architecture.of(result.module)
    assert Architecture.read(trial.folders[0]) == found
    free = {name: getattr(found, name) for name in UNPLANNED.get(trial.step.name, ())}
    assert replace(planned, **free) == found


def check_the_result_can_be_saved_and_loaded(trial: Trial, folder: Path) -> None:
    loaded = load_model(trial.folders[0])
    expected = outputs(trial.results[0].model, trial.splits)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(outputs(loaded, trial.splits), expected)
    if isinstance(loaded, TorchModel):  # what is shared in memory alone comes back twice
        assert loaded.num_parameters == trial.results[0].model.num_parameters


def check_it_is_described(trial: Trial, folder: Path) -> None:
    cls = type(trial.step)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)
    assert cls.paper.strip()
    assert cls.version >= 1
    assert cls.summary().endswith((".", ":"))
    assert cls.libraries
    undescribed = [name for name, field in cls.model_fields.items() if not field.description]
    assert not undescribed


CHECKS: tuple[Callable[[Trial, Path], None], ...] = (
    check_the_input_is_unchanged,
    check_the_same_seed_gives_the_same_bytes,
    check_settings_survive_a_recipe,
    check_the_result_has_the_promised_form,
    check_the_plan_is_what_comes_out,
    check_the_result_can_be_saved_and_loaded,
    check_it_is_described,
)
every_check = pytest.mark.parametrize(
    "check", CHECKS, ids=lambda each: each.__name__.removeprefix("check_")
)


def all_examples() -> list[Any]:
    return [
        pytest.param(name, settings, id=f"{name}-{number}")
        for name in available_passes()
        for number, settings in enumerate(EXAMPLES.get(name, ({},)))
    ]


@pytest.fixture(scope="module")
def original(make_classifier: Callable[..., TorchModel]) -> TorchModel:
    return make_classifier()


@pytest.fixture(scope="module")
def sources(original: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    """A model of each form."""
    exported = run_once(Export(), original, original, tmp_path_factory.mktemp("export") / "work")
    return {"torch": original, "onnx": exported.model}


@pytest.fixture(scope="module")
def trial(
    request: pytest.FixtureRequest,
    sources: Mapping[str, Model],
    original: TorchModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Trial:
    name, settings = request.param
    folder = tmp_path_factory.mktemp("checkpoint")
    original.save(folder)
    settings = {key: folder if value is CHECKPOINT else value for key, value in settings.items()}
    try:
        step = available_passes()[name](**settings)
    except ValidationError as error:
        pytest.fail(f"{name} needs settings: give it an entry in EXAMPLES\n{error}", pytrace=False)
    work = tmp_path_factory.mktemp(name)
    if name not in SUITED:
        return make_trial(step, sources[step.consumes], original, work)
    made, splits = SUITED[name]()
    assert step.unsuited(Architecture.of(original.module))
    made.save(work / "source")
    model = TorchModel.load(work / "source")  # with the network that the project loads
    return make_trial(step, model, model, work / "trial", splits)


@pytest.mark.parametrize(
    "trial",
    [pytest.param(each.values, id=each.id) for each in all_examples()],
    indirect=True,
    scope="module",
)
@every_check
def test_every_pass(trial: Trial, check: Callable[[Trial, Path], None], tmp_path: Path) -> None:
    check(trial, tmp_path)


def test_examples_are_of_passes_that_exist_and_cover_every_quantization_method() -> None:
    assert EXAMPLES.keys() | SUITED.keys() | UNPLANNED.keys() <= available_passes().keys()
    methods = Quantize.model_fields["method"].annotation.__args__  # type: ignore[union-attr]
    assert {each["method"] for each in EXAMPLES["quantize"]} == set(methods)


def blocks(language: str) -> list[str]:
    """The code blocks of the documentation in a language."""
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The examples of the documentation, as another installed distribution would bring them."""
    code, onnx_code, _ = blocks("python")
    info = tmp_path / "site" / "round_weights-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "documented_pass.py").write_text(code, encoding="utf-8")
    (tmp_path / "site" / "documented_onnx_pass.py").write_text(onnx_code, encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: round-weights\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[compressor.passes]\nround_weights = documented_pass:RoundWeights\n"
        "factorize_matrices = documented_onnx_pass:FactorizeMatrices\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    available_passes.cache_clear()
    yield
    available_passes.cache_clear()


@pytest.mark.usefixtures("announced")
def test_the_documented_pass_lives_outside_of_the_package_and_stands_the_suite(
    original: TorchModel, tmp_path: Path
) -> None:
    [recipe_text] = blocks("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: model\ndata: {train: a.csv, test: b.csv}\ntargets: [onnxruntime]\n" + recipe_text
    )
    step, export = load_recipe(path).passes
    assert type(step) is available_passes()["round_weights"]
    assert (step.settings(), export) == ({"digits": 6}, Export())
    trial = make_trial(step, original, original, tmp_path / "trial")
    for check in CHECKS:
        check(trial, tmp_path)
    assert trial.results[0].model.num_parameters == original.num_parameters
    weight = next(trial.results[0].model.module.parameters())
    mantissa, _ = torch.frexp(weight)
    torch.testing.assert_close(mantissa * 64, (mantissa * 64).round(), rtol=0, atol=0)


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize(("energy", "fewer"), [(0.5, True), (1.0, False)])
def test_the_documented_pass_from_onnx_to_onnx_stands_the_suite(
    sources: Mapping[str, Model], original: TorchModel, tmp_path: Path, energy: float, fewer: bool
) -> None:
    step = available_passes()["factorize_matrices"](energy=energy)
    trial = make_trial(step, sources["onnx"], original, tmp_path / "trial")
    for check in CHECKS:
        check(trial, tmp_path)
    before, after = (
        weights_size_bytes(load_model_proto(each.path))
        for each in (sources["onnx"], trial.results[0].model)
    )
    assert (after < before) == fewer
    found, expected = (outputs(each, trial.splits) for each in (trial.results[0].model, original))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error > 1e-3 if fewer else error < 1e-5


@pytest.mark.usefixtures("announced")
def test_the_documented_test_of_a_pass_runs(
    original: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, code = blocks("python")
    original.save(tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    names = {"tmp_path": tmp_path, "RoundWeights": available_passes()["round_weights"]}
    exec(code, names)  # noqa: S102  (our own documentation)
    assert names["result"].model.form == "torch"  # type: ignore[attr-defined]


class _Faulty(Pass):
    """A pass with a fault of its own."""

    name = "faulty"
    consumes = "torch"
    produces = "torch"
    paper = "none"
    fault: str
    """What is wrong with it."""

    def run(self, model: Any, context: PassContext) -> PassResult:
        made = model if self.fault == "in place" else model.clone()
        with torch.no_grad():
            for weight in made.module.parameters():
                weight += torch.rand(()) if self.fault == "unseeded" else 1
        if self.fault == "reads test":
            assert context.splits.test.inputs
        if self.fault == "lossy":
            made.module.bert.pooler.activation = torch.nn.Identity()  # the config knows of no such
        if self.fault == "unplanned":
            layers = made.module.bert.encoder
            layers.layer = layers.layer[:1]
            made.module.config.num_hidden_layers = 1
        return PassResult(made, notes=("two\nlines",) if self.fault == "notes" else ())


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("in place", check_the_input_is_unchanged),
        ("unseeded", check_the_same_seed_gives_the_same_bytes),
        ("unplanned", check_the_plan_is_what_comes_out),
        ("lossy", check_the_result_can_be_saved_and_loaded),
        ("notes", check_the_result_has_the_promised_form),
        ("not installed", check_settings_survive_a_recipe),
    ],
)
def test_the_suite_finds_a_fault(
    fault: str,
    check: Callable[[Trial, Path], None],
    make_classifier: Callable[..., TorchModel],
    tmp_path: Path,
) -> None:
    model = make_classifier()
    trial = make_trial(_Faulty(fault=fault), model, make_classifier(), tmp_path / "trial")
    with pytest.raises((AssertionError, RecipeError)):
        check(trial, tmp_path)
    if fault != "in place":
        check_the_input_is_unchanged(trial, tmp_path)


def test_a_pass_that_reads_the_test_split_is_caught(
    make_classifier: Callable[..., TorchModel], tmp_path: Path
) -> None:
    model = make_classifier()
    with pytest.raises(AssertionError, match="the pass read 'inputs' of the test split"):
        run_once(_Faulty(fault="reads test"), model, model, tmp_path / "work")
