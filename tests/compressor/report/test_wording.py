from __future__ import annotations

import pytest

from compressor.report import wording
from targets.errors import ToolkitError


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.4666, "1.47"), (16.31, "16.3"), (1630.4, "1,630"), (8192.0, "8,192"),
     (0.0, "0"), (-2.345, "-2.35"), (999.6, "1,000"), (float("nan"), "nan")],
)  # fmt: skip
def test_three_significant_digits(value, text):
    assert wording.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (812, "812 B"),
        (999_400, "999 kB"),
        (999_999, "1.00 MB"),
        (22_700_000, "22.7 MB"),
        (None, "-"),
    ],
)
def test_sizes(value, text):
    assert wording.bytes_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (9.97, "10 s"),
        (59.7, "1 min 0 s"),
        (250, "4 min 10 s"),
        (7380, "2 h 3 min"),
    ],
)
def test_durations(seconds, text):
    assert wording.duration_text(seconds) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("accuracy", "Accuracy"), ("rank correlation", "Rank correlation"), ("mAP", "mAP"),
     ("chrF", "chrF")],
)  # fmt: skip
def test_a_name_at_the_beginning_of_a_sentence(name, text):
    assert wording.capitalized(name) == text


@pytest.mark.parametrize(
    ("ratio", "text"), [(3.5, "3.50x smaller"), (0.9999992, ""), (1, ""), (None, "")]
)
def test_how_much_smaller_where_that_says_something(ratio, text):
    assert wording.smaller_text(wording.times(ratio)) == text


def test_what_a_run_took():
    assert wording.cost_text(250, 3_140_000_000) == "4 min 10 s, at most 3.14 GB of memory"
    assert wording.cost_text(250, None) == "4 min 10 s"  # a report from before it was kept


def test_counts():
    assert wording.count_text(22_700_000) == "22.7 M"
    assert wording.count_text(384) == "384"


@pytest.mark.parametrize(
    ("value", "text"), [(-0.04, "0.0"), (0.0, "0.0"), (-0.5, "-0.5"), (1.44, "1.4")]
)
def test_a_drop_of_nothing_has_no_sign(value, text):
    assert wording.points(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.44, 1.44, "-0.4 to 1.4"),
        (0.0, 1.0, "0.0 to 1.0"),
        (0.03, 1.6, "0.03 to 1.6"),
        (-1.6, -0.03, "-1.6 to -0.03"),
        (1e-9, 2.0, "0.0 to 2.0"),
    ],
)
def test_an_interval_that_leaves_out_zero_does_not_end_at_zero(low, high, text):
    assert wording.points_interval(low, high) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(100, 52, "-48%"), (100, 100, None), (None, 5, None), (5, None, None), (1000, 1001, "+0.1%"),
     (1000, 1, "-99.9%")],
)  # fmt: skip
def test_changes(before, after, text):
    assert wording.change(before, after) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.5, "0.5"), ("taylor", "taylor"), (["a", 1], '["a", 1]')],
)
def test_settings(value, text):
    assert wording.setting(value) == text


def test_one_line_cannot_steer_a_terminal():
    assert wording.one_line("two\n lines \x1b[31m red\x07") == "two lines [31m red"


def test_an_error_on_one_line_keeps_its_parts_apart():
    error = ToolkitError("it broke", where="here", given="given: 3", fix="mend it")
    assert wording.one_line(str(error)) == "it broke; where: here; given: given: 3; fix: mend it"
    assert wording.one_line("not installed\n  left:  run it") == "not installed; left: run it"
