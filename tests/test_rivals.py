"""The tools to compare with are targets like any other, though installed elsewhere."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from targets.base import Target
from targets.discovery import discover

RIVALS = Path(__file__).parents[1] / "benchmarks" / "rivals"
GROUP = "compressor.targets"
ENTRIES = tomllib.loads((RIVALS / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]


def test_every_rival_is_found_as_an_installed_target_would_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import targets.runtimes

    monkeypatch.syspath_prepend(str(RIVALS))
    announced = [importlib.metadata.EntryPoint(*each, GROUP) for each in ENTRIES.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: announced)
    found = discover(targets.runtimes, Target, GROUP)  # type: ignore[type-abstract]
    assert {name: found[name].__name__ for name in ENTRIES} == {
        name: value.partition(":")[2] for name, value in ENTRIES.items()
    }
