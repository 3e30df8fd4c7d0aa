from __future__ import annotations

import math
import re

import pytest

from compressor.report.drawing import MARKERS, Box, marker, place, polyline, shorten, text_width

AREA = Box(0, 0, 400, 200)


def test_a_label_keeps_off_what_is_taken():
    taken = [Box(205, 90, 400, 110)]
    label, room = place(200, 100, ["name"], taken, AREA)
    assert label.anchor == "end"
    assert all(room.overlap(other) == 0 for other in taken)


def test_a_label_stays_inside():
    _, room = place(398, 5, ["a rather long name"], [], AREA)
    assert room.is_inside(AREA)


def test_a_shorter_text_is_used_where_the_first_does_not_fit():
    walls = [Box(0, 0, 170, 200), Box(230, 0, 400, 200)]
    label, _ = place(200, 100, ["7 a name wider than the gap", "7"], walls, AREA)
    assert label.text == "7"


def test_the_last_text_is_placed_even_where_everything_is_taken():
    label, _ = place(200, 100, ["seven", "7"], [AREA], AREA)
    assert label.text == "7"


def test_shortened_text_keeps_both_ends_and_fits():
    text = shorten("quarter-width-long-distillation", 100)
    assert text_width(text) <= 100
    assert text.startswith("quarter")
    assert text.endswith("lation")


def test_text_that_fits_is_left_alone():
    assert shorten("short", 100) == "short"


def test_a_value_that_is_not_finite_leaves_a_gap():
    assert polyline([(0, 0), (1, 1), (2, math.nan), (3, 3)]) == "M0.0 0.0L1.0 1.0M3.0 3.0"


@pytest.mark.parametrize("name", MARKERS)
def test_markers_are_closed_paths_around_their_point(name):
    path = marker(name, 100, 50, 6)
    assert path.endswith("Z")
    x, y = (float(value) for value in re.match(r"M([\d.]+) ([\d.]+)", path).groups())
    assert math.hypot(x - 100, y - 50) < 10
