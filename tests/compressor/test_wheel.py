"""The wheel for devices, against the one that setuptools builds of the same code."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile

import pytest

from compressor.wheel import make_wheel
from targets.errors import ToolkitError


def content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_it_holds_what_the_built_one_holds(project_wheel, tmp_path):
    made, built = make_wheel(tmp_path), project_wheel
    assert made.name == built.name
    found, expected = content(made), content(built)
    assert sorted(found) == sorted(expected)
    of_the_installation = (".dist-info/WHEEL", ".dist-info/RECORD", ".dist-info/METADATA")
    for name, data in expected.items():
        if not name.endswith(of_the_installation):
            assert found[name] == data, name


@pytest.mark.slow
def test_an_installation_gives_the_same_wheel_as_its_checkout(project_wheel, tmp_path):
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", installed]
    subprocess.run([*pip, project_wheel], check=True, capture_output=True, cwd="/")
    (tmp_path / "made").mkdir()
    script = (
        f"import sys; sys.path.insert(0, {str(installed)!r}); from pathlib import Path; "
        "from compressor.wheel import make_wheel; import compressor; "
        f"print(compressor.__file__); make_wheel(Path({str(tmp_path / 'made')!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.startswith(str(installed))
    [made] = (tmp_path / "made").iterdir()
    found, expected = content(made), content(project_wheel)
    assert sorted(found) == sorted(expected)
    metadata = next(name for name in expected if name.endswith("/METADATA"))
    assert found[metadata] == expected[metadata]


def test_equal_code_gives_equal_bytes(tmp_path):
    (tmp_path / "again").mkdir()
    again = make_wheel(tmp_path / "again").read_bytes()
    assert make_wheel(tmp_path).read_bytes() == again


def test_code_that_is_not_installed_has_no_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [importlib.metadata.MetadataPathFinder])
    with pytest.raises(ToolkitError, match="metadata of this package are missing") as caught:
        make_wheel(tmp_path)
    assert "pip install" in caught.value.fix
