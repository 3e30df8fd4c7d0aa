"""The build half's errors: problems travel together, and misspelt names find their like."""

from __future__ import annotations

import pickle

import pytest

import compressor.errors
from compressor.errors import Problem, RecipeError, nearest


def test_a_recipe_error_carries_its_problems_through_pickling() -> None:
    problems = [Problem("first", where="a", given=1), Problem("second", fix="mend it")]
    error = RecipeError(problems, where="r.yaml")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  (made on the line above)
    assert type(again) is RecipeError
    assert str(again) == str(error)
    assert [each.what for each in again.problems] == ["first", "second"]
    assert again.problems[0].where == "a"


def test_every_problem_is_in_the_message() -> None:
    problems = [Problem(f"problem {number}", where="w") for number in range(12)]
    text = str(RecipeError(problems, where="r.yaml"))
    assert "the recipe has 12 problems" in text
    assert all(f"problem {number}\n" in text + "\n" for number in range(12))
    assert "the recipe has 1 problem\n" in str(RecipeError(problems[:1], where="r.yaml"))


def test_every_exit_code_is_documented_in_the_module() -> None:
    documented = str(compressor.errors.__doc__)
    for name in compressor.errors.__all__:
        cls = getattr(compressor.errors, name)
        if isinstance(cls, type) and cls is not Problem:
            assert name in documented
            assert f" {cls.exit_code} " in documented.replace("\n", " ")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("exprt", "export"),
        ("EXPORT", "export"),
        ("OpenVINO", "openvino"),
        ("openvno", "openvino"),
        ("export", "export"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found_without_regard_to_case(word: str, expected: str | None) -> None:
    assert nearest(word, ["prune", "export", "openvino"]) == expected


def test_the_nearest_name_keeps_its_own_case() -> None:
    assert nearest("label", ["Text", "Label"]) == "Label"
    assert nearest("x", []) is None
