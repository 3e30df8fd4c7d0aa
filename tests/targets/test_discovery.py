"""Discovery: modules of a package and entry points of other distributions, by name."""

from __future__ import annotations

import hashlib
import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from targets.discovery import (
    Component,
    announcer,
    discover,
    foreign_source,
    package_source,
)
from targets.errors import PluginError
from targets.runtimes.onnxruntime import OnnxRuntime

GROUP = "test.shapes"


class Shape(Component):
    """Base of the components of these tests."""


class Sized(Shape):
    """A shape with a size.

    And more on it.
    """

    name: ClassVar[str] = "sized"

    size: int = Field(default=3, ge=1)
    """How large."""
    parts: tuple[str, ...] = ()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Make a package with the given modules."""

    def make(**modules: str) -> ModuleType:
        folder = tmp_path / "shapes_of_test"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for name, text in modules.items():
            head = "from test_discovery_base import Shape\n"
            (folder / f"{name}.py").write_text(head + text)
        monkeypatch.syspath_prepend(str(tmp_path))
        base = ModuleType("test_discovery_base")
        base.Shape = Shape  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "test_discovery_base", base)
        for name in [name for name in sys.modules if name.startswith("shapes_of_test")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()
        return importlib.import_module("shapes_of_test")

    return make


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution that announces a value of a module under an entry point."""

    def install(text: str, value: str, *, distribution: str = "other") -> None:
        site = tmp_path / f"site_{distribution}"
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[{GROUP}]\nplugin = {value}\n")
        (site / f"{distribution}_module.py").write_text(
            "from test_discovery_base import Shape\n" + text
        )
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, f"{distribution}_module", raising=False)

    return install


def test_public_modules_are_searched_and_sorted_by_name(
    package: Callable[..., ModuleType],
) -> None:
    found = discover(
        package(
            b="class Round(Shape):\n    'One.'\n    name = 'round'\n",
            a="class Square(Shape):\n    'One.'\n    name = 'square'\n"
            "class Oval(Shape):\n    'One.'\n    name = 'oval'\n",
            _hidden="class Hidden(Shape):\n    'One.'\n    name = 'hidden'\n",
        ),
        Shape,
        GROUP,
    )
    assert list(found) == ["oval", "round", "square"]
    assert found["round"].__name__ == "Round"


def test_bases_imports_and_other_values_are_left_out(package: Callable[..., ModuleType]) -> None:
    found = discover(
        package(
            a="class Base(Shape):\n    '''Has no name.'''\n"
            "class A(Base):\n    'One.'\n    name = 'a'\n"
            "class Child(A):\n    '''Has no name of its own.'''\nalias = A\nname = 'x'\n",
            b="from shapes_of_test.a import A\nclass Other:\n    name = 'other'\n",
            c="from shapes_of_test._hidden import Hidden\n",
            _hidden="class Hidden(Shape):\n    'One.'\n    name = 'hidden'\n",
        ),
        Shape,
        GROUP,
    )
    assert list(found) == ["a"]


def test_two_classes_of_one_name_in_the_package(package: Callable[..., ModuleType]) -> None:
    both = package(
        a="class A(Shape):\n    'One.'\n    name = 'x'\n",
        b="class B(Shape):\n    'Two.'\n    name = 'x'\n",
    )
    with pytest.raises(PluginError, match="two passes or targets have the same name") as caught:
        discover(both, Shape, GROUP)
    assert caught.value.where == "shapes_of_test/b.py"
    assert str(caught.value.given) == ("'x', which is the name of A in shapes_of_test/a.py too")


def test_a_class_of_the_package_that_lacks_something(package: Callable[..., ModuleType]) -> None:
    with pytest.raises(PluginError, match="a pass or target is not complete") as caught:
        discover(package(a="class A(Shape):\n    name = 'x'\n"), Shape, GROUP)
    assert caught.value.where == "shapes_of_test/a.py"
    assert str(caught.value.given) == "A lacks a docstring"


def test_entry_points_add_components(
    package: Callable[..., ModuleType], announce: Callable[..., None]
) -> None:
    announce("class Star(Shape):\n    'A star.'\n    name = 'star'\n", "other_module:Star")
    found = discover(package(a="class A(Shape):\n    'One.'\n    name = 'a'\n"), Shape, GROUP)
    assert list(found) == ["a", "star"]
    assert found["star"].__module__ == "other_module"


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("import no_such_module\n", "other_module:Star", "ModuleNotFoundError: No module named"),
        ("raise RuntimeError('boom')\n", "other_module:Star", "RuntimeError: boom"),
        ("", "other_module:Star", "AttributeError"),
        ("class Star:\n    name = 'star'\n", "other_module:Star", "not a subclass of Shape"),
        ("class Star(Shape):\n    '''No name.'''\n", "other_module:Star", "not a subclass of"),
        (
            "class Star(Shape):\n    'A star.'\n    name = 'a'\n",
            "other_module:Star",
            "'a' is taken by shapes_of",
        ),
        ("", "other_module", "a module is not a subclass of Shape"),
        ("class Star(Shape):\n    name = 'star'\n", "other_module:Star", "lacks a docstring"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named_with_its_distribution(
    package: Callable[..., ModuleType],
    announce: Callable[..., None],
    text: str,
    value: str,
    reason: str,
) -> None:
    announce(text, value)
    with pytest.raises(PluginError) as caught:
        discover(package(a="class A(Shape):\n    'One.'\n    name = 'a'\n"), Shape, GROUP)
    error = caught.value
    assert error.exit_code == 7
    assert error.what == "other announces 'plugin', which cannot be used"
    assert error.where == f"entry point {GROUP}: {value}"
    assert reason in str(error.given)
    assert str(error.fix).startswith("update or uninstall other")


class Wheeled(Component, ABC):
    """Base of components that have to bring something."""

    wheels: ClassVar[int]
    colour: ClassVar[str] = "red"

    @abstractmethod
    def roll(self) -> None:
        """Go on."""


def test_a_plugin_that_is_not_whole_is_told_what_it_lacks(
    announce: Callable[..., None], package: Callable[..., ModuleType]
) -> None:
    empty = package()
    sys.modules["test_discovery_base"].Shape = Wheeled  # type: ignore[attr-defined]
    announce("class Car(Shape):\n    'A car.'\n    name = 'car'\n", "other_module:Car")
    with pytest.raises(PluginError) as caught:
        discover(empty, Wheeled, GROUP)  # type: ignore[type-abstract]
    assert caught.value.given == "Car lacks wheels, roll()"
    assert "its author must add what Wheeled needs" in str(caught.value.fix)


def test_the_code_of_a_plugin_tells_its_states_apart(
    announce: Callable[..., None], package: Callable[..., ModuleType], tmp_path: Path
) -> None:
    announce("class Star(Shape):\n    'A star.'\n    name = 'star'\n", "other_module:Star")
    star = discover(package(), Shape, GROUP)["star"]
    assert announcer(star) == "other_module"  # of which no list of files is installed
    [(name, first)] = foreign_source(star).items()
    assert name == "source of other_module"
    file = tmp_path / "site_other" / "other_module.py"
    assert first == hashlib.sha256(b"other_module.py\0" + file.read_bytes()).hexdigest()
    file.write_text(file.read_text() + "# another line\n")
    package_source.cache_clear()
    assert foreign_source(star) != {name: first}


def test_our_own_components_have_versions_instead() -> None:
    assert foreign_source(OnnxRuntime) == {}
    assert announcer(OnnxRuntime) is None


def test_a_component_is_frozen_and_checked() -> None:
    sized = Sized()
    with pytest.raises(ValidationError, match="frozen"):
        sized.size = 4  # type: ignore[misc]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Sized(size=0)
    with pytest.raises(ValidationError, match="Extra inputs"):
        Sized.model_validate({"sise": 3})
    assert Sized() == Sized(size=3)
    assert Sized() != Sized(size=4)


def test_settings_are_json_values_without_the_name() -> None:
    assert Sized(parts=("a",)).settings() == {"size": 3, "parts": ["a"]}
    assert Sized.model_validate(Sized(size=9).settings()) == Sized(size=9)


def test_docstrings_become_descriptions() -> None:
    assert Sized.summary() == "A shape with a size."
    assert Sized.model_fields["size"].description == "How large."


def test_a_file_that_cannot_be_imported_is_named(package: Callable[..., ModuleType]) -> None:
    broken = package(good="", broken="import no_such_library\n")
    with pytest.raises(PluginError, match="a pass or target cannot be imported") as caught:
        discover(broken, Shape, GROUP)
    assert caught.value.where == "shapes_of_test/broken.py"
    assert "No module named 'no_such_library'" in str(caught.value.given)
    assert "belong inside the methods" in str(caught.value.fix)
