from __future__ import annotations

import re

import pytest

from compressor.report.charts import latency_chart, series_of, size_chart
from compressor.report.curves import training_curves
from compressor.report.scatter import scatter_chart


def test_every_measured_row_is_a_point_with_its_number(report):
    chart = scatter_chart(report, 340, 340)
    points = [shape for shape in chart.shapes if shape.css.startswith("point")]
    assert len(points) == 10
    numbers = {label.text for label in chart.labels if label.css.startswith("name")}
    assert numbers == {"1", "2", "3", "4", "6", "7", "9", "10", "12", "13"}


def test_chosen_rows_wear_a_ring(report):
    assert sum(shape.css == "ring" for shape in scatter_chart(report, 800, 440).shapes) == 2


def test_faster_is_further_left_and_better_is_higher(report):
    chart = scatter_chart(report, 800, 440)
    points = [
        (shape.title, *map(float, re.match(r"M([\d.]+) ([\d.]+)", shape.d).groups()))
        for shape in chart.shapes
        if shape.css.startswith("point") and " openvino" in shape.title
    ]
    place = {title.split()[0]: (x, y) for title, x, y in points}
    assert place["13"][0] < place["12"][0] < place["7"][0] < place["3"][0]
    assert place["13"][1] > place["12"][1] > place["7"][1]


@pytest.mark.parametrize("size", [(800, 440), (340, 340)])
def test_everything_stays_on_the_canvas(report, size):
    chart = scatter_chart(report, *size)
    assert all(0 <= label.x <= chart.width for label in chart.labels)
    assert all(0 <= label.y <= chart.height for label in chart.labels)


def test_the_front_is_told_to_those_who_cannot_see_it(report):
    summary = scatter_chart(report, 800, 440).summary
    assert re.findall(r"(?:: |; )(\d+) ", summary) == ["13", "12", "10", "7"]


def test_targets_differ_in_colour_and_marker(report):
    looks = series_of(report).values()
    assert len({look.css for look in looks}) == len({look.marker for look in looks}) == 5


def test_a_bundle_that_was_only_built_has_a_size_but_no_latency(report):
    sizes = size_chart(report, 560)
    assert any("tensorrt-rtx" in label.text for label in sizes.labels)
    assert not any("tensorrt-rtx" in label.text for label in latency_chart(report, 560).labels)


def test_without_anything_to_show_there_are_no_charts(unmeasured_report):
    assert scatter_chart(unmeasured_report, 800, 440) is None
    assert latency_chart(unmeasured_report, 560) is None


def test_a_single_row_makes_charts(single_row_report):
    assert scatter_chart(single_row_report, 800, 440)
    assert latency_chart(single_row_report, 560)


def test_names_and_values_of_narrow_charts_do_not_meet(report):
    for chart in (latency_chart(report, 340), size_chart(report, 340)):
        names = [label for label in chart.labels if label.css.startswith("name")]
        for left, right in zip(names[::2], names[1::2], strict=True):
            assert 6.2 * (len(left.text) + len(right.text)) < 340


def test_a_pass_that_variants_share_is_drawn_once(report):
    curves = training_curves(report)
    assert [curve.variants for curve in curves] == [
        ("half-width", "quarter-width-long-distillation"),
        ("quarter-width-long-distillation",),
    ]
    assert "validation accuracy from 90.9% to 93.9%" in curves[0].chart.summary


@pytest.mark.parametrize(
    ("epoch_s", "unit", "last"),
    [
        (None, "steps", "400"),
        (30.0, "seconds of training", "100"),
        (150.0, "minutes of training", "10"),
    ],
)
def test_a_curve_is_drawn_over_the_time_that_the_training_took(report, epoch_s, unit, last):
    step = report.steps["half-width"][1]  # 4 epochs
    metrics = step.metrics if epoch_s is None else {**step.metrics, "epoch_s": epoch_s}
    steps = {"v": (step.model_copy(update={"metrics": metrics}),)}
    [curve] = training_curves(report.model_copy(update={"steps": steps}))
    along = [label.text for label in curve.chart.labels if label.anchor == "middle"]
    assert along[-2:] == [last, unit]
    assert f"over {unit}" in curve.chart.summary


def test_the_perplexity_of_a_language_model_has_a_panel(report):
    step = report.steps["half-width"][1]
    history = tuple(
        {"step": number, "validation_accuracy": 0.2, "validation_perplexity": value}
        for number, value in ((1.0, 24.5), (2.0, 12.25))
    )
    steps = {"v": (step.model_copy(update={"history": history}),)}
    [curve] = training_curves(report.model_copy(update={"steps": steps}))
    assert "validation perplexity from 24.5 to 12.2" in curve.chart.summary


def test_passes_without_history_have_no_curve(report):
    steps = {"v": tuple(s.model_copy(update={"history": ()}) for s in report.steps["half-width"])}
    assert training_curves(report.model_copy(update={"steps": steps})) == ()


def test_a_diverged_loss_does_not_stop_the_drawing(report):
    step = report.steps["half-width"][1]
    history = ({"step": 1.0, "loss": float("nan")}, {"step": 2.0, "loss": float("inf")})
    for entries in (history, (*history, {"step": 3.0, "loss": 0.5})):
        steps = {"v": (step.model_copy(update={"history": entries}),)}
        assert len(training_curves(report.model_copy(update={"steps": steps}))) == 1
