import json
from xml.etree import ElementTree

import pytest

from compressor.training.curves import draw_curves, save_curves

HISTORY = (
    {"step": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 2, "epoch": 1.0, "loss": 1.0, "learning_rate": 0.0, "validation_accuracy": 0.75},
)


def test_history_is_kept_as_numbers_and_as_a_picture(tmp_path):
    save_curves(HISTORY, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "curves.json").read_text()) == list(HISTORY)
    root = ElementTree.parse(tmp_path / "new" / "curves.svg").getroot()  # noqa: S314  (our own)
    assert root.tag.endswith("svg")


@pytest.mark.parametrize("history", [(), HISTORY[:1]])
def test_a_short_history_is_drawn(tmp_path, history):
    path = draw_curves(history, tmp_path / "curves.png", title="fine-tuning")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_equal_histories_give_equal_files(tmp_path):
    pictures = [draw_curves(HISTORY, tmp_path / f"{name}.svg").read_bytes() for name in "ab"]
    assert pictures[0] == pictures[1]
