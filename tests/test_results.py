"""The published figures belong to what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import transcribing, where_time_goes, writing
from benchmarks.ablation import table as ablation
from benchmarks.compare import table
from benchmarks.families import table as families
from benchmarks.pareto import real_table
from benchmarks.pareto import table as every_speed
from compressor.passes import Pass
from compressor.passes.export import Export
from compressor.passes.quantize import Quantize
from compressor.recipe import load_recipe
from compressor.report.files import read_report
from targets.bench import BenchReport

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
README = Path(__file__).parents[1] / "README.md"
COMPARISON = Path(__file__).parents[1] / "docs" / "comparison.md"


@pytest.mark.parametrize("name", ["trec6_minilm_balanced", "trec6_minilm_balanced_seed1"])
def test_a_published_run_is_one_of_the_recipe_as_it_is_shipped(name: str, tmp_path: Path) -> None:
    assert_is_balanced(RESULTS / f"{name}.json", tmp_path)


def assert_is_balanced(report: Path, folder: Path) -> None:
    """Its recipe, with the defaults of settings that are newer, does what `balanced` does."""
    written = json.loads(report.read_text())["recipe"]
    known = {**written, "targets": ["onnxruntime"]}  # rivals are installed elsewhere
    (folder / "recipe.json").write_text(json.dumps(known))
    published, shipped = load_recipe(folder / "recipe.json"), load_recipe("balanced")
    *passes, export = published.passes
    # The limit is another one today, and none of these models comes near to either.
    usual = Export.model_fields["single_file_limit_bytes"].default
    export = export.model_copy(update={"single_file_limit_bytes": usual})
    assert (*passes, export) == shipped.passes
    variants = {name: tuple(map(as_today, tail)) for name, tail in published.variants.items()}
    assert variants == shipped.variants


def as_today(step: Pass) -> Pass:
    """A quantization with its ranges chosen as today: before, they were a fixed percentile."""
    if not isinstance(step, Quantize):
        return step
    usual = Quantize.model_fields
    if (step.calibration, step.percentile) == ("percentile", usual["percentile"].default):
        return step.model_copy(update={"calibration": usual["calibration"].default})
    return step


def test_the_table_of_the_readme_is_that_of_the_published_run() -> None:
    report = read_report(RESULTS / "trec6_minilm_balanced.json")
    table = README.read_text()
    measured = [row for row in report.rows if row.status == "measured"]
    assert len(measured) == 9
    for row in measured:
        latency = row.latency[report.primary_shape].median_ms
        assert row.test is not None
        assert row.size_bytes is not None
        wanted = (f"{latency:.1f}", f"{100 * row.test.value:.1f}%", f"{row.size_bytes / 1e6:.1f}")
        lines = [line.replace("*", "") for line in table.splitlines()]
        assert any(all(f"| {value} |" in line for value in wanted) for line in lines), wanted


def test_the_table_of_the_families_is_that_of_the_published_runs() -> None:
    lines = list(families())
    assert len(lines) > 6
    for line in lines:
        assert line in README.read_text().splitlines()


@pytest.mark.parametrize(
    "path",
    sorted([*RESULTS.glob("compare_*.json"), *RESULTS.glob("int8_*.json")]),
    ids=lambda path: path.stem,
)
def test_the_tables_of_the_comparison_are_those_of_the_published_runs(path: Path) -> None:
    published = COMPARISON.read_text()
    for line in table(read_report(path)):
        assert line in published.splitlines()


@pytest.mark.parametrize("path", sorted(RESULTS.glob("pareto_*.json")), ids=lambda path: path.stem)
def test_the_tables_of_every_speed_are_those_of_the_published_runs(path: Path) -> None:
    published = COMPARISON.read_text()
    for line in every_speed(read_report(path)):
        assert line in published.splitlines()


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("real_texts_*.json")), ids=lambda path: path.stem
)
def test_the_tables_of_real_texts_are_those_of_the_published_runs(path: Path) -> None:
    published = COMPARISON.read_text().splitlines()
    lines = list(real_table(BenchReport.model_validate_json(path.read_text())))
    assert len(lines) > 3
    for line in lines:
        assert line in published


@pytest.mark.parametrize(
    "path", sorted(RESULTS.glob("ablation_*.json")), ids=lambda path: path.stem
)
def test_the_tables_of_what_each_part_gives_are_those_of_the_published_runs(path: Path) -> None:
    published = COMPARISON.read_text().splitlines()
    document = json.loads(path.read_text())
    lines = list(ablation(document))
    assert len(lines) == 2 + len(document["cases"])
    for line in lines:
        assert line in published


def test_the_tables_of_where_time_goes_are_those_of_the_published_profiles() -> None:
    published = COMPARISON.read_text().splitlines()
    document = json.loads((RESULTS / "where_time_goes_trec_6.json").read_text())
    lines = list(where_time_goes.table(document))
    assert len(lines) > 20
    for line in lines:
        assert line in published


def test_the_table_of_what_writes_is_that_of_the_published_times() -> None:
    published = json.loads((RESULTS / "generation_smollm2_writing.json").read_text())
    lines = list(writing.table(writing.read(published)))
    assert len(lines) > 5
    page = (COMPARISON.parent / "generation.md").read_text().splitlines()
    for line in lines:
        assert line in page


def test_what_is_compared_is_the_recipe_as_it_is_shipped_or_as_it_was_found(
    tmp_path: Path,
) -> None:
    compared = {path.name: path for path in RESULTS.glob("compare_*.json")}
    found = compared.pop("compare_20_newsgroups_seed0.json")
    assert compared
    for path in compared.values():
        assert_is_balanced(path, tmp_path)
    recipe = json.loads(found.read_text())["recipe"]
    where_found = json.loads((RESULTS / "int8_20_newsgroups_seed0.json").read_text())["recipe"]
    assert recipe["passes"] == where_found["passes"]
    for name, tail in recipe["variants"].items():
        assert tail == where_found["variants"][name]


def test_the_table_of_what_transcribes_is_that_of_the_published_times() -> None:
    published = json.loads((RESULTS / "speech_whisper_transcribing.json").read_text())
    lines = list(transcribing.table(transcribing.read(published)))
    assert len(lines) > 4
    page = (COMPARISON.parent / "speech.md").read_text().splitlines()
    for line in lines:
        assert line in page
