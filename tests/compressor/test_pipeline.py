"""One whole run of a recipe, and what a second one finds."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import targets
from compressor import pipeline, preparation
from compressor.data import DataSpec, data_fingerprint, read_splits
from compressor.errors import CheckpointError, PassError
from compressor.manager import PassManager, import_checkpoint
from compressor.passes import Pass, PassResult
from compressor.passes.trim_vocabulary import TrimVocabulary
from compressor.progress import Silent
from compressor.recipe import load_recipe
from compressor.report.files import read_report
from compressor.store import RunStore, StoredStep
from compressor.tasks import get_task
from targets import registry
from targets.bundle import Bundle, hash_file
from targets.errors import TargetError, WorkerError
from targets.evaluation_pack import EvaluationPack
from tests.compressor.conftest import write_rows

LABELS = ("person", "place", "time")


@pytest.fixture(scope="module")
def rows(finished) -> dict[tuple[str, str, str], Any]:
    report = read_report(finished.output)
    return {(row.variant, row.target, row.precision): row for row in report.rows}


@pytest.fixture(scope="module")
def held_out(home) -> tuple[list[str], np.ndarray]:
    with (home / "test.csv").open(encoding="utf-8") as stream:
        read = list(csv.DictReader(stream))
    labels = np.array([LABELS.index(row["label"]) for row in read])
    return [row["text"] for row in read], labels


def predicted(folder: Path, texts: list[str]) -> np.ndarray:
    with targets.load(folder) as predictor:
        return predictor.logits(texts).argmax(axis=-1)


def bundle_hashes(output: Path) -> dict[str, str]:
    return {
        path.relative_to(output).as_posix(): hash_file(path)
        for path in sorted((output / "bundles").rglob("*"))
        if path.is_file()
    }


def test_a_plan_shows_every_setting_that_differs_from_its_default(home, compressor):
    given = ("--set", "passes.2.dropout=0", "--set", "passes.2.labels_weight=0")
    outcome = compressor("plan", home / "recipe.yaml", *given)
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if " distill" in line)
    assert "dropout=0" in line
    assert "labels_weight=0" in line
    assert "exclude" not in outcome.out


def test_a_run_within_the_budget_exits_0_and_leaves_the_report_in_three_forms(finished):
    assert finished.outcome.code == 0, finished.outcome.err
    assert "BUDGET MET" in finished.outcome.out
    for name in ("report.json", "report.md", "report.html"):
        assert (finished.output / name).stat().st_size > 0


def test_a_run_begins_with_the_warnings_that_validate_gives(finished, home, compressor):
    warned = re.findall("^warning: .*", compressor("validate", home / "recipe.yaml").out, re.M)
    assert any("tensorrt" in line for line in warned)
    assert finished.outcome.out.splitlines()[: len(warned)] == warned


def test_every_candidate_on_every_target_has_a_row_with_its_status(rows):
    statuses = {key[:2]: row.status for key, row in rows.items() if row.kind == "candidate"}
    assert statuses == {
        ("fp32", "onnxruntime"): "measured",
        ("int8", "onnxruntime"): "measured",
        ("int8-dynamic", "onnxruntime"): "measured",
        ("fp32", "openvino"): "measured",
        ("int8", "openvino"): "measured",
        ("int8-dynamic", "openvino"): "refused",
        ("fp32", "tensorrt_rtx"): "built",
        ("int8", "tensorrt_rtx"): "built",
        ("int8-dynamic", "tensorrt_rtx"): "refused",
        ("fp32", "tensorrt"): "unavailable",
        ("int8", "tensorrt"): "unavailable",
        ("int8-dynamic", "tensorrt"): "unavailable",
        ("fp32", "pytorch"): "measured",
        ("int8", "pytorch"): "refused",
        ("int8-dynamic", "pytorch"): "refused",
    }


def test_each_target_has_the_untouched_model_as_its_baseline(rows):
    bases = {key[1] for key, row in rows.items() if row.kind != "candidate"}
    assert bases == {"onnxruntime", "openvino", "tensorrt_rtx", "tensorrt", "pytorch"}
    assert rows["original", "pytorch", "fp32"].kind == "reference"
    assert {row.variant for row in rows.values() if row.kind != "candidate"} == {"original"}


def test_every_bundle_opens_verifies_and_bears_the_name_of_its_variant(finished, rows):
    bundles = [row for row in rows.values() if row.kind == "candidate" and row.bundle]
    assert len(bundles) == 8
    for row in bundles:
        opened = Bundle.open(finished.output / row.bundle)
        assert (opened.manifest.name, opened.manifest.target) == (row.variant, row.target)
        assert opened.size_bytes == row.size_bytes


def test_a_bundle_has_the_tokenizer_of_the_model_without_the_spaces(finished, rows, home):
    folder = finished.output / rows["fp32", "onnxruntime", "fp32"].bundle
    ours = (folder / "tokenizer.json").read_text("utf-8")
    theirs = json.loads((home / "model" / "tokenizer.json").read_text("utf-8"))
    for name in ("normalizer", "pre_tokenizer", "decoder"):  # its vocabulary is trimmed
        assert json.loads(ours)[name] == theirs[name]
    assert "\n" not in ours
    assert '": ' not in ours


def test_a_bundle_tells_its_origin_and_what_was_measured_of_it(finished, rows, home):
    report = read_report(finished.output)
    for row in (each for each in rows.values() if each.kind == "candidate" and each.bundle):
        manifest = Bundle.open(finished.output / row.bundle).manifest
        origin, measured = manifest.provenance, manifest.measured
        assert origin["checkpoint"]["name"] == "model"
        assert origin["checkpoint"]["sha256"] == report.model.sha256
        assert origin["data"]["sha256"] == report.data["sha256"]
        steps = report.steps[row.variant]
        if row.target == "pytorch":  # which takes the model as the passes in torch form left it
            steps = [step for step in steps if step.pass_name not in ("export", "quantize")]
            assert len(steps) < len(report.steps[row.variant])
        assert [each["pass"] for each in origin["passes"]] == [step.pass_name for step in steps]
        assert [each["settings"] for each in origin["passes"]] == [step.settings for step in steps]
        assert measured.accuracy == row.test
        assert measured.machine == report.environment.machine
        card = (finished.output / row.bundle / "README.md").read_text()
        assert f"# {row.variant} for {row.target}" in card
        assert f"pip install 'compressor[{registry.get(row.target).extra}]'\n" in card
        if row.status == "measured":
            own = row.latency[report.primary_shape]
            assert measured.latency.median_ms == own.median_ms
            assert (measured.latency.low_ms, measured.latency.high_ms) == (
                own.interval.low,
                own.interval.high,
            )
            assert f"{100 * row.test.value:.1f}%" in card
        else:
            assert measured.latency is None
            assert f"Nothing: {row.reason}" in card
        for text in (card, manifest.model_dump_json()):
            assert str(home) not in text
            assert str(finished.store) not in text


def test_a_bundle_carries_the_data_to_measure_its_accuracy_again(
    finished, rows, held_out, compressor, tmp_path
):
    row = rows["int8", "onnxruntime", "int8"]
    folder = finished.output / row.bundle
    pack = EvaluationPack.load(folder / "evaluation.safetensors")
    assert pack.labels.tolist() == list(held_out[1])
    archive = tmp_path / "int8.tar.zst"
    assert compressor("pack", folder, archive).code == 0
    for bundle in (folder, archive):
        outcome = compressor("evaluate", bundle)
        assert outcome.code == 0, outcome.err
        here, built = (line.partition(":")[2].strip() for line in outcome.out.splitlines())
        assert here == built
        assert here.startswith(f"{100 * row.test.value:.1f}%")


def test_an_fp32_bundle_answers_as_the_pipeline_of_transformers(finished, home, held_out):
    from transformers import AutoModelForSequenceClassification, pipeline

    baseline = next(  # the checkpoint as it was, exported
        record
        for record in RunStore(finished.store).steps()
        if record.kind == "lower:onnxruntime" and record.inputs["name"] == "original"
    )
    texts = [*held_out[0], "what king", "cat " * 60, "?!"]
    reference = pipeline(
        "text-classification",
        AutoModelForSequenceClassification.from_pretrained(home / "model"),
        tokenizer=get_task("text-classification").load_processor(home / "model"),
        top_k=None,
    )
    expected = reference(texts, truncation=True, max_length=32)
    with targets.load(finished.store / "steps" / baseline.key / "files") as predictor:
        found = predictor.predict(texts)
    for answer, wanted in zip(found, expected, strict=True):
        assert answer.label == wanted[0]["label"]
        scores = {each["label"]: each["score"] for each in wanted}
        assert answer.scores == pytest.approx(scores, abs=1e-5)


def test_a_tuned_run_stores_the_evidence_and_finds_it_again(finished, home, tmp_path, compressor):
    arguments = (
        "run", home / "recipe.yaml", "--output", tmp_path, "--store", finished.store,
        "--set", "bundle.tune=true", "--set", "targets=[onnxruntime]",
        "--set", "variants={fp32: []}",
    )  # fmt: skip
    outcome = compressor(*arguments)
    assert outcome.code == 0, (outcome.out, outcome.err)
    told = [line for line in outcome.out.splitlines() if line.startswith("  tune ")]
    assert len(told) == 2  # the baseline and the variant; the eager reference has no options
    opened = Bundle.open(tmp_path / "bundles" / "fp32-onnxruntime")
    tuning = opened.manifest.tuning
    assert tuning is not None
    assert tuning.trials[0].name == "default"
    assert {"no spinning", "basic optimization"} <= {trial.name for trial in tuning.trials}
    for row in read_report(tmp_path).rows:
        assert any(note.startswith("tuned: ") for note in row.notes) == (row.kind != "reference")
        assert row.status == "measured"
    before = Bundle.open(finished.output / "bundles" / "fp32-onnxruntime")
    assert predicted(opened.folder, ["who cat"]) == predicted(before.folder, ["who cat"])
    again = [line for line in compressor(*arguments).out.splitlines() if "  tune " in line]
    assert len(again) == 2
    assert all(" cached " in line for line in again)


def test_the_output_of_a_run_is_no_bundle_but_names_those_in_it(finished, compressor):
    for folder in (finished.output, finished.output / "bundles"):
        outcome = compressor("verify", folder)
        assert outcome.code == 6
        assert f"pass one of {finished.output / 'bundles'}" in outcome.err


def test_the_data_can_be_left_out(finished, home, tmp_path, compressor):
    outcome = compressor(
        "run", home / "recipe.yaml", "--output", tmp_path, "--store", finished.store,
        "--set", "bundle.evaluation_data=false",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "bundles" / "int8-onnxruntime"
    assert not (folder / "evaluation.safetensors").exists()
    refused = compressor("evaluate", folder)
    assert refused.code == 6
    assert "the bundle carries no test data" in refused.err


def test_accuracy_is_what_the_bundle_in_the_output_folder_predicts(finished, rows, held_out):
    texts, labels = held_out
    checked = 0
    for row in rows.values():
        if row.status == "measured" and row.bundle and row.target != "pytorch":
            hits = predicted(finished.output / row.bundle, texts) == labels
            assert row.test.value == pytest.approx(hits.mean(), abs=1e-12)
            assert row.test.num_rows == len(labels) == 48
            checked += 1
    assert checked == 5


def test_the_comparison_is_paired_with_the_untouched_model(finished, rows, held_out, home):
    texts, labels = held_out
    model = get_task("text-classification").load_checkpoint(home / "model")
    feeds = get_task("text-classification").encode(model, texts)
    import torch

    with torch.no_grad():
        before = np.array(
            [
                model.module(**{name: torch.tensor([ids]) for name, ids in each.items()})
                .logits.argmax()
                .item()
                for each in feeds
            ]
        )
    row = rows["int8", "onnxruntime", "int8"]
    after = predicted(finished.output / row.bundle, texts)
    lost = ((before == labels) & (after != labels)).sum()
    gained = ((before != labels) & (after == labels)).sum()
    found = row.test_comparison
    assert found.drop_points == pytest.approx(100 * (lost - gained) / len(labels))
    assert found.agreement == pytest.approx((before == after).mean())
    assert rows["original", "pytorch", "fp32"].test.value == pytest.approx(
        (before == labels).mean()
    )
    assert 0.6 < (before == labels).mean() < 1  # the model is above chance, the labels are noisy


def test_a_row_says_why_in_one_short_line_without_a_path_into_the_store(finished, rows):
    for row in rows.values():
        if row.reason:
            assert str(finished.store) not in row.reason
            assert len(row.reason.splitlines()[0]) < 120
    refused = rows["int8-dynamic", "openvino", "int8-dynamic"].reason
    assert "where: model.onnx" in refused
    assert str(finished.store) not in finished.outcome.out
    assert "given:" not in finished.outcome.out


def test_two_precisions_of_one_model_leave_two_folders_for_another_machine(finished):
    names = {path.name for path in (finished.output / "hand_over").iterdir()}
    assert {"original-tensorrt-fp32", "original-tensorrt-fp16", "fp32-tensorrt"} <= names


def test_a_torch_target_tells_variants_that_are_one_model_there(rows):
    assert "the same model as fp32" in rows["int8", "pytorch", "fp32"].reason


def test_a_step_that_variants_share_is_told_once(finished):
    lines = [line.split("  ")[0] for line in finished.outcome.out.replace("\n  ", "\n").split("\n")]
    assert lines.count("distill") == 1
    done = [line for line in lines if " after " not in line]  # a slow step tells how far it is
    own = [line for line in done if "quantize" in line or "export" in line]
    # The baselines: fp16, and bf16 where the processor has it.
    baselines = own[: own.index("export")]
    assert baselines in (["original: export", *["original: quantize"] * num] for num in (1, 2))
    assert own[len(baselines) :] == ["export", "int8: quantize", "int8-dynamic: quantize"]


def test_the_report_tells_which_steps_this_run_made(finished):
    steps = read_report(finished.output).steps
    assert set(steps) == {"original", "fp32", "int8", "int8-dynamic"}
    assert [step.pass_name for step in steps["int8"]] == [
        "trim_vocabulary",
        "prune",
        "distill",
        "export",
        "quantize",
    ]
    assert not any(step.cached for chain in steps.values() for step in chain)


SECOND = """
import sys
from compressor.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    code = left.code
print("HEAVY", [name for name in ("torch", "transformers", "openvino") if name in sys.modules])
sys.exit(code)
"""


def test_a_second_run_finds_every_step_imports_no_torch_and_gives_the_same_bundles(
    finished, home, tmp_path
):
    arguments = ["run", home / "recipe.yaml", "--output", tmp_path, "--store", finished.store]
    done = subprocess.run(
        [sys.executable, "-c", SECOND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    first, second = read_report(finished.output), read_report(tmp_path)
    assert all(step.cached for chain in second.steps.values() for step in chain)
    progress = done.stdout.partition("HEAVY")[0].splitlines()
    steps = [line for line in progress if line.startswith("  evaluate") or "latency" in line[:24]]
    assert len(steps) >= 8
    assert all(" cached " in line for line in steps if line.startswith("  "))
    [refused] = [line for line in progress if "lower int8-dynamic to openvino" in line]
    assert " cached " in refused
    assert "refused: " in refused
    assert bundle_hashes(tmp_path) == bundle_hashes(finished.output)
    assert [row.latency for row in first.rows] == [row.latency for row in second.rows]


def test_the_checkpoint_stays_untouched(finished, home):
    before = {path.name for path in (home / "model").iterdir()}
    assert before == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    record = next(r for r in RunStore(finished.store).steps() if r.kind == "import")
    hashes = {path.name: hash_file(path) for path in (home / "model").iterdir()}
    assert record.inputs["files"] == hashes
    assert {path.name for path in home.iterdir()} == {
        "model",
        "recipe.yaml",
        "train.csv",
        "validation.csv",
        "test.csv",
    }


def test_a_missed_budget_exits_5_and_keeps_the_bundles(finished, home, tmp_path, compressor):
    outcome = compressor(
        "run", home / "recipe.yaml", "--output", tmp_path, "--store", finished.store,
        "--set", "budget.max_size_mb=0.001",
    )  # fmt: skip
    assert outcome.code == 5
    assert "BUDGET NOT MET" in outcome.out
    assert bundle_hashes(tmp_path) == bundle_hashes(finished.output)
    assert all(row.unmet for row in read_report(tmp_path).rows if row.test and row.bundle)


def test_other_quantization_settings_use_the_trunk_again(finished, home, tmp_path, compressor):
    outcome = compressor(
        "run", home / "recipe.yaml", "--output", tmp_path, "--store", finished.store,
        "--set", "targets=[tensorrt]",  # nothing to measure here
        "--set", "variants={int8: [{pass: quantize, method: static, num_samples: 8}]}",
    )  # fmt: skip
    assert outcome.code == 6, outcome.err
    steps = read_report(tmp_path).steps["int8"]
    assert [step.cached for step in steps] == [True, True, True, True, False]


class Spy(Pass):
    """Looks at what it gets."""

    name: ClassVar[str] = "spy"
    consumes: ClassVar[Any] = "torch"
    produces: ClassVar[Any] = "torch"
    paper: ClassVar[str] = "none"
    seen: ClassVar[list[Any]] = []

    def run(self, model: Any, context: Any) -> PassResult:
        self.seen.append(context.splits)
        return PassResult(model.clone())


def run_passes(folder: Path, store: Path, *passes: Pass, seed: int = 0) -> list[StoredStep]:
    spec = DataSpec(**{name: folder / f"{name}.csv" for name in ("train", "validation", "test")})
    shared: Any = {
        "store": RunStore(store),
        "splits": lambda: read_splits(spec, label_names=LABELS, seed=seed),
        "data_hash": data_fingerprint(spec, seed=seed),
        "progress": Silent(),
    }
    original = import_checkpoint(
        folder / "model", task="text-classification", max_length=None, **shared
    )
    manager = PassManager(original=original, seed=seed, width_multiple=8, **shared)
    return [original, *manager.run(passes)]


class Rebuild(Pass):
    """Puts a module where the class has none."""

    name: ClassVar[str] = "rebuild"
    consumes: ClassVar[Any] = "torch"
    produces: ClassVar[Any] = "torch"
    paper: ClassVar[str] = "none"

    def run(self, model: Any, context: Any) -> PassResult:
        from torch import nn

        changed = model.clone()
        changed.module.classifier = nn.Sequential(changed.module.classifier)
        return PassResult(changed)


def test_a_pass_whose_model_cannot_be_saved_is_named(home, tmp_path):
    with pytest.raises(PassError, match="the model that the pass rebuild made") as caught:
        run_passes(home, tmp_path, Rebuild())
    assert caught.value.where == "rebuild"
    assert "unknown: classifier.0.weight" in str(caught.value.given)


class Refuse(Rebuild):
    """Raises what the loading of a checkpoint raises."""

    name: ClassVar[str] = "refuse"

    def run(self, model: Any, context: Any) -> PassResult:
        raise CheckpointError("the teacher is damaged", fix="copy it again")


def test_a_checkpoint_that_a_pass_reads_keeps_its_own_error(home, tmp_path):
    with pytest.raises(CheckpointError, match="the teacher is damaged"):
        run_passes(home, tmp_path, Refuse())


class Bare(Rebuild):
    """Gives what is no result."""

    name: ClassVar[str] = "bare"

    def run(self, model: Any, context: Any) -> Any:
        return model.clone()


def test_a_pass_that_gives_no_result_is_told_what_to_give(home, tmp_path):
    with pytest.raises(PassError, match="bare did not return a PassResult with a model") as caught:
        run_passes(home, tmp_path, Bare())
    assert caught.value.given == "TorchModel"
    assert "return PassResult(model=...)" in str(caught.value.fix)


def test_labels_in_another_order_than_the_classes_are_doubted(home, tmp_path, compressor):
    """Nothing is lost against an untouched model that is wrong itself: the budget would be met."""
    assert "do the labels match" not in compressor("plan", home / "recipe.yaml").out
    turned = tmp_path / "home"
    shutil.copytree(home, turned)
    for name in ("train", "validation", "test"):
        path = turned / f"{name}.csv"
        with path.open(encoding="utf-8") as stream:
            rows = [(row["text"], LABELS.index(row["label"])) for row in csv.DictReader(stream)]
        write_rows(path, [(text, str((number + 1) % len(LABELS))) for text, number in rows])
    found = compressor(
        "run", "int8", "--model", turned / "model", "--data", turned, "--output", tmp_path / "out",
        "--store", tmp_path / "store", "--set", "targets=[onnxruntime]",
        "--set", "benchmark={rounds: 1, min_round_s: 0.001, pause_s: 0, sequence_length: 16}",
    )  # fmt: skip
    said = " ".join((found.out + found.err).split())
    assert "warning: the untouched model is right on" in said
    assert "do the labels match the classes of this model?" in said


def test_passes_never_see_the_test_data(home, tmp_path):
    Spy.seen.clear()
    run_passes(home, tmp_path, Spy())
    (splits,) = Spy.seen
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (120, 36, 0)


def test_a_step_is_found_again_unless_the_data_or_the_seed_changed(home, tmp_path):
    copied, trim = tmp_path / "copied", TrimVocabulary(keep_first=0)
    shutil.copytree(home, copied)

    def cached(seed: int = 0) -> list[bool]:
        return [step.cached for step in run_passes(copied, tmp_path / "s", trim, seed=seed)]

    assert cached() == [False, False]
    assert cached() == [True, True]
    assert cached(seed=1) == [True, False]
    with (copied / "train.csv").open("a", encoding="utf-8") as stream:
        stream.write("who owl,person\n")
    assert cached() == [False, False]
    assert cached() == [True, True]


def test_the_seed_is_part_of_the_data_where_it_sets_the_validation_data_apart(
    home, tmp_path, monkeypatch
):
    hashes = []

    def stop(*_: Any, data_hash: str, **__: Any) -> None:
        hashes.append(data_hash)
        raise TargetError("that is enough")

    monkeypatch.setattr(preparation, "import_checkpoint", stop)
    store = RunStore(tmp_path)
    for override in ("seed=0", "seed=1"):
        recipe = load_recipe(home / "recipe.yaml", overrides=[override, "data.validation=null"])
        with pytest.raises(TargetError, match="enough"):
            pipeline.run(recipe, store=store)
    assert hashes[0] != hashes[1]
    assert store.runs()[0].status == "failed: that is enough"


def test_a_run_that_a_bug_ended_is_not_recorded_as_running(home, tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(preparation, "import_checkpoint", fail)
    with pytest.raises(ZeroDivisionError):
        pipeline.run(load_recipe(home / "recipe.yaml"), store=RunStore(tmp_path))
    assert RunStore(tmp_path).runs()[0].status == "failed: ZeroDivisionError"


def test_latencies_are_taken_again_on_request_only(tmp_path, monkeypatch):
    from compressor import measuring
    from targets.benchmark import BenchmarkSettings
    from targets.environment import Environment

    calls = []

    def benchmark(*_: Any) -> dict[str, Any]:
        calls.append(1)
        return {}

    monkeypatch.setattr(measuring, "benchmark", benchmark)
    here: Any = SimpleNamespace(machine="here")
    monkeypatch.setattr(
        Environment,
        "here",
        staticmethod(lambda: SimpleNamespace(model_dump=lambda mode: json.loads("{}"))),
    )
    for again in (False, False, True, False):
        measuring.measure_latency(
            [], BenchmarkSettings(), store=RunStore(tmp_path), environment=here,
            on_progress=lambda *_: None, again=again,
        )  # fmt: skip
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("error", "is_kept"),
    [(WorkerError("the process of a target was ended by SIGKILL"), False),
     (TargetError("static shape"), True)],
)  # fmt: skip
def test_a_measurement_in_which_a_worker_died_is_not_used_again(
    tmp_path, monkeypatch, error, is_kept
):
    """It may have been the machine's fault, such as too little memory for a moment."""
    from compressor import measuring
    from compressor.lowering import Candidate
    from targets.benchmark import BenchmarkSettings, CaseResult, Failure
    from targets.environment import Environment
    from targets.protocol import ErrorRecord
    from targets.runtimes.pytorch import PyTorch

    store = RunStore(tmp_path)
    step = store.step("lower", {}, lambda files, work: {})
    candidate = Candidate("a", "candidate", PyTorch(), "fp32", "built", bundle=step, runs_here=True)
    failures = [(Failure(error=ErrorRecord.of(error)),), ()]

    def benchmark(cases: dict[str, Any], *_: Any) -> dict[str, CaseResult]:
        return {name: CaseResult(failures=failures.pop(0)) for name in cases}

    monkeypatch.setattr(measuring, "benchmark", benchmark)
    found = []
    for _ in range(3):
        _, results = measuring.measure_latency(
            [candidate], BenchmarkSettings(), store=store, environment=Environment.here(),
            on_progress=lambda *_: None,
        )  # fmt: skip
        found.append(len(results[candidate.key].failures))
    assert found == ([1, 1, 1] if is_kept else [1, 0, 0])


def test_a_tokenizer_that_knows_all_of_the_test_data_is_not_remarked_upon(rows):
    assert not any(
        "tokens of the test split" in note for row in rows.values() for note in row.notes
    )
