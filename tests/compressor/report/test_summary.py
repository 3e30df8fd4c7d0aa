from __future__ import annotations

import io

import pytest
from rich.console import Console

from compressor.report.html import render_html
from compressor.report.markdown import render_markdown
from compressor.report.schema import Check
from compressor.report.steps import step_texts
from compressor.report.summary import (
    absent_groups,
    accuracy_split,
    best,
    environment_facts,
    how_measured,
    noise_reasons,
    row_texts,
    target_labels,
)
from compressor.report.terminal import results_table


def test_the_best_bundle_is_the_fastest_chosen_one(report):
    found = best(report)
    assert found.met
    assert found.text.row.variant == "quarter-width-long-distillation"
    assert found.text.row.target == "openvino"


def test_gpus_and_the_share_of_a_container_are_facts_of_the_machine(report):
    facts = dict(environment_facts(report))
    assert facts["CPUs"] == "4"
    assert "GPUs" not in facts
    machine = report.environment.model_copy(update={"gpus": ("NVIDIA L4",), "cpu_quota": 1.5})
    facts = dict(environment_facts(report.model_copy(update={"environment": machine})))
    assert facts["GPUs"] == "NVIDIA L4"
    assert facts["CPUs"] == "4, and the time of 1.5"


def test_its_baseline_is_the_fastest_on_its_target(report):
    bf16 = report.rows[3]
    assert best(report).baseline_ms == bf16.latency["1x128"].median_ms


def test_without_a_chosen_row_the_fastest_candidate_is_named_as_not_met(report):
    rows = tuple(row.model_copy(update={"chosen": False}) for row in report.rows)
    found = best(report.model_copy(update={"rows": rows}))
    assert not found.met
    assert found.text.number == 13


def test_a_picked_row_that_misses_the_budget_is_not_called_one_to_ship(report):
    missed_check = Check(
        limit="min_speedup", wanted=3, found=2, met=False, text="is 2.00x as fast, wanted 3x"
    )
    rows = tuple(
        row.model_copy(update={"checks": (missed_check,)}) if row.chosen else row
        for row in report.rows
    )
    missed = report.model_copy(update={"rows": rows})
    found = best(missed)
    assert (found.met, found.text.mark, found.text.number) == (False, "nearest", 12)
    assert found.text.state == "nearest, misses the budget"
    page, document = render_html(missed), render_markdown(missed)
    console = Console(width=100, file=io.StringIO())
    console.print(results_table(missed))
    terminal = console.file.getvalue()
    for text in (page, document, terminal):
        assert "to ship" not in text
        assert "is 2.00x as fast, wanted 3x" in text
    assert "Nearest candidate" in page
    assert "Nearest candidate" in document
    assert "nearest to the budget on its target, which misses it" in terminal


def test_without_candidates_there_is_no_best(unmeasured_report, single_row_report):
    assert best(unmeasured_report) is None
    assert best(single_row_report) is None


def test_the_device_is_named_only_where_a_target_has_several(report):
    assert target_labels(report)[2] == "openvino"
    rows = (*report.rows, report.rows[2].model_copy(update={"device": "GPU"}))
    labels = target_labels(report.model_copy(update={"rows": rows}))
    assert labels[2] == "openvino"  # on its default device
    assert labels[-1] == "openvino (GPU)"
    assert labels[1] == "onnxruntime"


def test_validation_stands_in_where_nothing_was_tested(report):
    rows = tuple(row.model_copy(update={"test": None}) for row in report.rows)
    untested = report.model_copy(update={"rows": rows})
    assert accuracy_split(untested) == "validation"
    assert row_texts(untested)[0].accuracy == "94.7%"
    assert any("500 validation examples" in line for line in how_measured(untested))


def test_marks_follow_the_budget(report):
    marks = {text.number: text.mark for text in row_texts(report)}
    assert marks == {
        **dict.fromkeys((1, 2, 3, 4, 5, 8, 11, 14, 15), ""),
        **dict.fromkeys((6, 7, 13), "missed"),
        **dict.fromkeys((9, 12), "chosen"),
        10: "met",
    }


def test_rows_with_one_reason_stand_together(report):
    assert [[text.number for text in group] for group in absent_groups(report)] == [
        [5, 11], [8], [14], [15],
    ]  # fmt: skip


def test_a_missing_reason_is_said_to_be_missing(report):
    row = report.rows[4].model_copy(update={"reason": None})
    text = row_texts(report.model_copy(update={"rows": (row,)}))[0]
    assert text.reason == "no reason was recorded"


def test_noise_is_told_for_each_row_and_shape(noisy_report):
    lines = noise_reasons(noisy_report)
    assert len(lines) == 30
    assert "other processes kept 3.4 of 4 CPUs busy" in lines[0]


def test_how_it_was_measured_names_threads_rounds_and_load(report):
    text = " ".join(how_measured(report))
    assert "2 CPU threads" in text
    assert "9 rounds" in text
    assert "load average was 2.10 to 2.20 on 4 CPUs" in text


def test_a_pass_is_compared_with_the_one_before(report):
    prune, distill, trim, export, quantize = step_texts(report, "half-width")
    assert prune.parameters_change == "-23%"
    assert prune.accuracy_change == "-7.6"
    assert distill.parameters_change == ""
    assert distill.accuracy_change == "+7.0"
    assert trim.metrics == (("tokens_kept", "8,192"),)
    assert export.parameters == "-"
    assert quantize.size_change == "-68%"


def test_a_cached_pass_says_so(report):
    assert step_texts(report, "quarter-width-long-distillation")[0].duration == "42 s (cached)"


def test_a_variant_without_passes_has_none(report):
    assert step_texts(report, "unknown") == ()


def test_the_untouched_model_has_no_drop_against_itself(report):
    references = [text for text in row_texts(report) if text.row.kind == "reference"]
    assert references
    for text in references:
        compared = next(row.test_comparison for row in report.rows if row.test_comparison)
        own = text.row.model_copy(update={"test_comparison": compared})
        (found,) = row_texts(report.model_copy(update={"rows": (own,)}))
        assert (found.drop, found.drop_interval, found.accuracy) == ("-", "", text.accuracy)


def test_rows_of_a_language_model_have_what_it_wrote(writing_report, report):
    first, second, *_ = row_texts(writing_report)
    assert (first.written, first.first_token, first.writing_speedup) == ("25", "320", "1x")
    assert (second.written, second.first_token, second.writing_speedup) == ("50", "160", "2x")
    assert second.writing_speedup_interval == "1.80 to 2.20"
    assert second.sort["written"] == pytest.approx(50)
    assert {text.written for text in row_texts(report)} == {"-"}
    assert noise_reasons(writing_report) == ()
    row = writing_report.rows[1]
    rounds = tuple(each.model_copy(update={"others_cpus": 4.0}) for each in row.writing.rounds)
    disturbed = row.writing.model_copy(update={"rounds": rounds})
    busy = writing_report.model_copy(
        update={"rows": (row.model_copy(update={"writing": disturbed}),)}
    )
    (text,) = row_texts(busy)
    assert (text.written, text.noisy) == ("50~", False)
    assert any("as it wrote: other" in line for line in noise_reasons(busy))
    assert any("tokens/s" in line.lower() for line in how_measured(writing_report))
    assert not any("tokens/s" in line.lower() for line in how_measured(report))


def test_rows_of_a_language_model_have_their_perplexity(written_report, report):
    texts = row_texts(written_report)
    measured = [text for text in texts if text.row.status == "measured"]
    assert measured[0].perplexity == "48"  # the untouched model, with which all are compared
    assert measured[1].perplexity == "49 (+2.1%)"
    assert measured[1].sort["perplexity"] == 49
    assert {text.perplexity for text in texts if text.row.status != "measured"} == {"-"}
    assert {text.perplexity for text in row_texts(report)} == {"-"}
