"""The devices file, and how devices are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.devices.inventory import read_devices, select_devices
from compressor.errors import InventoryError
from targets.errors import InputError

GOOD = """
pi:
  address: ssh://me@pi.local:2222
  runtime: onnxruntime
  threads: 4
  pip_options: [--index-url, "http://localhost/simple"]
  identity_file: keys/pi
nuc:
  address: ssh://nuc
  python: /opt/env/bin/python
  known_hosts: ~/hosts
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "devices.yaml"
        path.write_text(text)
        return path

    return make


def problems(path):
    with pytest.raises(InventoryError) as caught:
        read_devices(path)
    assert caught.value.where == str(path)
    assert str(caught.value).startswith("the devices file has ")
    return {each.where: each for each in caught.value.problems}


def test_a_file_gives_devices_by_name(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere")
    devices = read_devices(write(GOOD))
    assert list(devices) == ["pi", "nuc"]
    pi, nuc = devices.values()
    assert str(pi.address) == "ssh://me@pi.local:2222"
    assert (pi.runtime, pi.threads, pi.base_python) == ("onnxruntime", 4, "python3")
    assert pi.pip_options == ("--index-url", "http://localhost/simple")
    assert pi.identity_file == tmp_path / "keys" / "pi"
    assert nuc.known_hosts == Path("/elsewhere/hosts")


def test_everything_that_is_wrong_is_told_at_once(write):
    found = problems(
        write(
            "a: {adress: ssh://a}\n"
            "b: {address: b, threads: 0}\n"
            "c: 3\n"
            "d: {address: ssh://d, python: p, runtime: openvino}\n"
            "e: {address: ssh://e, workdir: /}\n"
            "f: {address: ssh://f, timeout_s: soon}\n"
            "no: {address: ssh://g}\n"
        )
    )
    assert "did you mean 'address'?" in found["a.adress"].fix
    assert found["a.address"].what == "a required setting is missing"
    assert "not the address of a device" in found["b.address"].what
    assert found["b.threads"].fix == "use at least 1"
    assert found["c"].what == "a device is a mapping of settings"
    assert "runtime has no effect beside python" in found["d"].what
    assert "a folder of its own" in found["e.workdir"].what
    assert found["f.timeout_s"].fix == "write a number"
    assert found[None].given == "False"
    assert len(found) == 9


@pytest.mark.parametrize("workdir", ["/", "~", "~/", "bench", "~/../x", "/a/../..", "~root/x", ""])
def test_a_work_folder_is_a_folder_of_its_own(write, workdir):
    assert set(problems(write(f"a: {{address: ssh://a, workdir: '{workdir}'}}"))) == {"a.workdir"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("a: {address: ssh://a}\na: {address: ssh://b}", "not valid YAML"),
        ("- a", "a mapping from names to devices"),
        ("", "a mapping from names to devices"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_devices_file(write, text, words):
    [problem] = problems(write(text)).values()
    assert words in problem.what


def test_a_file_that_is_not_there(tmp_path):
    [problem] = problems(tmp_path / "absent.yaml").values()
    assert problem.what == "the file does not exist"


def test_devices_are_chosen_by_name_and_by_address(write):
    path = write(GOOD)
    chosen = select_devices(["nuc", "ssh://x"], path)
    assert list(chosen) == ["nuc", "ssh://x"]
    assert chosen["nuc"].python == "/opt/env/bin/python"
    assert list(select_devices([], path)) == ["pi", "nuc"]


@pytest.mark.parametrize(
    ("asked", "with_file", "what", "fix"),
    [
        ("nuk", True, "there is no device 'nuk'", "did you mean 'nuc'? known: pi, nuc"),
        ("nuc", False, "this is not the address of a device", "--devices FILE"),
        ("ftp://nuc", False, "this is not the address of a device", "ssh://user@host"),
    ],
)
def test_a_device_that_nobody_knows(write, asked, with_file, what, fix):
    with pytest.raises(InputError) as caught:
        select_devices([asked], write(GOOD) if with_file else None)
    assert caught.value.what == what
    assert caught.value.given == asked
    assert fix in caught.value.fix


def test_no_device_at_all():
    with pytest.raises(InputError, match="no device is named"):
        select_devices([], None)
