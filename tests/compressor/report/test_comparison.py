from __future__ import annotations

import itertools
import re

from compressor.report.charts import RADIUS
from compressor.report.comparison import compare_reports
from compressor.report.history import TOP, histories_of


def title_of(entry):
    return entry.text.row.variant, entry.text.target, entry.run.number


def test_runs_keep_their_order_and_get_names_of_their_own(report):
    names = ["a", "b", "a", "a (1)", "a"]
    runs = compare_reports([report.model_copy(update={"name": name}) for name in names]).runs
    assert [run.label for run in runs] == ["a (2)", "b", "a (3)", "a (1)", "a (4)"]
    assert len({run.css for run in runs}) == 5


def test_a_row_on_a_device_has_its_latency_there_and_its_accuracy_here(several_reports):
    found = compare_reports(several_reports)
    entries = {title_of(entry): entry for entry in found.entries}
    here = entries["half-width", "onnxruntime", 2]
    there = entries["half-width", "onnxruntime on pi", 2]
    assert there.device == "pi"
    assert 7 < there.text.sort["latency"] / here.text.sort["latency"] < 9
    assert there.text.accuracy == here.text.accuracy
    assert there.text.size == here.text.size
    assert there.text.mark == here.text.mark == "chosen"
    assert there.text.speedup == "-"  # that of the machine of the run is not that of the device
    assert "speedup" not in there.text.sort
    assert found.markers["onnxruntime"] != found.markers["onnxruntime on pi"]


def test_a_bundle_that_only_a_device_can_run_has_a_row(several_reports):
    second = several_reports[1]
    rows = tuple(
        row.model_copy(update={"status": "built", "reason": "no GPU", "latency": {}})
        if row.devices
        else row
        for row in second.rows
    )
    entries = compare_reports([second.model_copy(update={"rows": rows})] * 2).entries
    assert "onnxruntime" not in {entry.text.target for entry in entries}
    on_board = [entry for entry in entries if entry.device]
    assert len(on_board) == 6
    assert not any(entry.text.reason for entry in on_board)


def test_there_is_a_front_for_each_machine_over_all_runs_and_targets(several_reports):
    found = compare_reports(several_reports)
    assert [front.title for front in found.fronts.values()] == [
        "On the Pareto front of trec-questions (1), trec-questions (2)",
        "On the Pareto front of pi of trec-questions (2)",
        f"On the Pareto front of {several_reports[2].name}",
    ]
    assert len({front.css for front in found.fronts.values()}) == 3
    summary = found.scatter(800, 440).summary
    first = summary.partition("trec-questions (2), fastest first: ")[2].partition(". On the")[0]
    # The second run is faster throughout, with the same accuracies.
    assert first.count(" · trec-questions (2)") == 4
    assert first.count(" · trec-questions (1)") == 0


def test_runs_of_one_machine_share_one_front(several_reports):
    found = compare_reports(several_reports[:1] * 2)
    assert [front.title for front in found.fronts.values()] == ["On the Pareto front"]
    assert found.notes == ()


def test_a_colour_is_a_run_and_a_marker_a_target(several_reports):
    found = compare_reports(several_reports)
    points = [s for s in found.scatter(800, 440).shapes if s.css.startswith("point")]
    colours = {entry.text.number: entry.run.css for entry in found.entries}
    assert len(points) == len(found.entries) == 33
    assert all(colours[int(point.data["row"])] in point.css for point in points)
    # A marker is what is drawn after the start of its path.
    drawn = {}
    for point in points:
        target = found.entries[int(point.data["row"]) - 1].text.target
        drawn.setdefault(target, set()).add(len(re.findall(r"[La]", point.d)))
    assert all(len(each) == 1 for each in drawn.values())


def notes_of(*reports):
    return compare_reports(reports).notes


def test_what_is_not_comparable_is_said(several_reports):
    notes = notes_of(*several_reports)
    assert len(notes) == 4
    machines, shapes, data, models = notes
    assert "Latencies come from 3 machines and cannot be compared between them" in machines
    assert "@ 2.70GHz (trec-questions (1), trec-questions (2)); Cortex-A76 (pi of trec" in machines
    assert "(pi of trec-questions (2)); AMD EPYC" in machines
    assert f"1x128 (trec-questions (1), trec-questions (2)); 8x128 ({several_reports[2].name})" in (
        shapes
    )
    assert "different data" in data
    assert "data cdcdcdcdcdcd" in data
    assert "different models" in models


def test_machines_with_one_processor_are_named_in_full(report):
    other = report.environment.model_copy(update={"num_cpus": 8})
    (note,) = notes_of(report, report.model_copy(update={"environment": other}))
    assert "2.70GHz; 4 CPUs; avx2" in note
    assert "2.70GHz; 8 CPUs; avx2" in note


def test_each_difference_is_said_alone(report):
    first = report
    row = first.rows[0]
    untested = tuple(row.model_copy(update={"test": None}) for row in first.rows)
    thrice = {shape: each.model_copy(update={"threads": 3}) for shape, each in row.latency.items()}
    threads = (row.model_copy(update={"latency": thrice}), *first.rows[1:])
    noisy = first.verdict.model_copy(update={"noisy": True})
    for changes, words in (
        ({"rows": untested}, "different splits: the test split (trec-questions (1)); the valid"),
        ({"rows": threads}, "different numbers of threads: 2 threads"),
        ({"verdict": noisy}, "disturbed the latencies of trec-questions (2)"),
    ):
        notes = notes_of(first, first.model_copy(update=changes))
        assert len(notes) == 1
        assert words in notes[0]


def test_machines_that_only_look_the_same_are_told_apart(several_reports):
    first, _, third = several_reports
    slow = first.model_copy(update={"rows": third.rows, "name": "slow"})
    found = compare_reports([first, slow])
    assert len(found.notes) == 1
    assert "count as different machines" in found.notes[0]
    assert re.search(r"17\.1 ms in trec-questions, 34\.1 ms in slow \(pytorch; Int", found.notes[0])
    assert [front.title for front in found.fronts.values()] == [
        "On the Pareto front of trec-questions",
        "On the Pareto front of slow",
    ]
    # A model of another architecture tells nothing of the machine.
    other = slow.model.model_copy(update={"architecture": "another"})
    assert len(compare_reports([first, slow.model_copy(update={"model": other})]).fronts) == 1


def test_labels_of_targets_agree_between_the_runs(report):
    rows = tuple(
        row.model_copy(update={"device": "GPU"}) if row.target == "openvino" else row
        for row in report.rows
    )
    found = compare_reports([report, report.model_copy(update={"rows": rows})])
    assert {"openvino", "openvino (GPU)"} <= set(found.markers)


def test_a_target_on_two_devices_has_a_history_of_each(several_reports):
    """One that ships for a CPU and for a GPU: neither takes the place of the other."""
    both = [
        each.model_copy(
            update={
                "rows": tuple(
                    row
                    for one in each.rows
                    for row in (one, one.model_copy(update={"device": "GPU"}))
                    if one.target == "openvino"
                )
            }
        )
        for each in several_reports
    ]
    found = compare_reports(both)
    (history,) = histories_of(found)
    assert [each.target for each in history.targets] == ["openvino", "openvino (GPU)"]
    assert [each.target for each in found.runs[0].ships] == ["openvino", "openvino (GPU)"]


# History


def test_runs_of_one_recipe_or_model_have_a_history(several_reports):
    (history,) = histories_of(compare_reports(several_reports[::-1]))
    assert history.title == "trec-questions"
    assert [each.target for each in history.targets] == ["onnxruntime", "openvino"]
    for target in history.targets:
        assert [run.created for run, _ in target.rows] == [
            "2026-03-14 15:09 UTC",
            "2026-03-15 07:00 UTC",
        ]
        assert [chart.summary.partition(" of ")[0] for chart in target.charts] == [
            "Latency, ms",
            "Accuracy",
            "Size",
        ]


def test_runs_are_related_by_way_of_others(several_reports):
    first, second, third = several_reports
    third = third.model_copy(update={"model": first.model})
    (history,) = histories_of(compare_reports([third, second, first]))
    # A date that cannot be read comes last.
    assert [run.number for run, _ in history.targets[0].rows] == [3, 2, 1]
    strangers = [
        report.model_copy(
            update={"name": n, "model": first.model.model_copy(update={"sha256": n * 64})}
        )
        for n, report in zip("abc", several_reports, strict=True)
    ]
    assert histories_of(compare_reports(strangers)) == ()


def lines(chart):
    return sorted(shape.d.count("L") for shape in chart.shapes if shape.css == "curve plain")


def test_lines_join_only_what_can_be_compared(several_reports):
    first, second, third = several_reports
    third = third.model_copy(update={"name": first.name, "created": "2026-03-14T20:00:00Z"})
    (history,) = histories_of(compare_reports([first, second, third]))
    latency, accuracy, size = history.targets[0].charts
    # The third is of another machine and other data, and lies between the others in time.
    assert lines(latency) == [0, 1]
    assert lines(accuracy) == [0, 1]
    assert lines(size) == [2]


def test_the_history_tells_where_a_run_ships_nothing(several_reports):
    first, second, _ = several_reports
    rows = tuple(row.model_copy(update={"chosen": False}) for row in first.rows)
    nothing = first.model_copy(update={"rows": rows, "created": "2026-03-16T00:00:00Z"})
    (history,) = histories_of(compare_reports([first, second, nothing]))
    assert [entry is None for _, entry in history.targets[0].rows] == [False, False, True]


def test_a_history_where_nothing_ships_is_there_and_empty(several_reports):
    first, second, _ = several_reports
    missed = [
        report.model_copy(
            update={"rows": tuple(r.model_copy(update={"chosen": False}) for r in report.rows)}
        )
        for report in (first, second)
    ]
    (history,) = histories_of(compare_reports(missed))
    assert (history.title, history.targets) == ("trec-questions", ())


def test_no_point_of_the_history_is_on_the_edge(several_reports):
    (history,) = histories_of(compare_reports(several_reports[:2]))
    for chart in history.targets[0].charts:
        tops = [float(re.findall(r"M\S+ (\S+?)a", s.d)[0]) for s in chart.shapes if s.title]
        assert len(tops) == 2
        assert min(tops) >= TOP + RADIUS


def test_many_runs_fit_on_the_axis(report):
    reports = [
        report.model_copy(update={"created": f"2026-{month:02}-01T00:00:00Z"})
        for month in range(1, 13)
    ]
    (history,) = histories_of(compare_reports(reports))
    labels = [label for label in history.targets[0].charts[0].labels if label.text[:2] == "01"]
    places = sorted(label.x for label in labels)
    assert len(places) >= 3
    assert min(b - a for a, b in itertools.pairwise(places)) >= 42
