"""The registry: targets by name, and what is said of names and settings it does not know."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from targets import Bundle, Target, available, get, open_session
from targets.errors import PluginError, TargetError


def test_every_target_is_there_by_its_name() -> None:
    known = available()
    assert set(known) >= {"onnxruntime", "openvino", "pytorch", "tensorrt", "tensorrt_rtx"}
    assert list(known) == sorted(known)
    for name, cls in known.items():
        assert issubclass(cls, Target)
        assert cls.name == name
        assert isinstance(cls(), Target)


def test_get_makes_a_target_with_settings() -> None:
    target = get("openvino", device="GPU")
    assert target.settings()["device"] == "GPU"
    assert target.label == "openvino (GPU)"
    assert get("openvino").label == "openvino"


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(TargetError) as caught:
        get("gpu")
    assert caught.value.exit_code == 6
    assert caught.value.what == "there is no target 'gpu'"
    assert caught.value.fix == f"use one of {', '.join(available())}"


def test_settings_that_do_not_fit_are_an_error_of_the_target() -> None:
    with pytest.raises(TargetError) as caught:
        get("openvino", devise="GPU")
    assert caught.value.what.startswith("the target openvino does not take these settings: ")
    assert caught.value.where == "devise"
    assert "its settings are device" in str(caught.value.fix)


def test_targets_of_other_distributions_are_found(fake_target: Path) -> None:
    assert available()["fake"]().settings() == {"fault": "", "delay_ms": 0.0}


def test_one_that_is_broken_does_not_keep_ours_from_work(
    fake_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "fake_target", raising=False)
    (fake_target / "fake_target.py").write_text("import no_such_library\n")
    assert get("onnxruntime").name == "onnxruntime"
    with pytest.raises(PluginError, match="fake-target announces 'fake', which cannot be used"):
        get("fake")


def test_a_bundle_is_opened_on_the_target_it_was_made_for(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_bundle("slow", delay_ms=1.0))
    session = open_session(bundle, threads=2)
    assert session.signature == bundle.manifest.signature
    assert session.options == {"fault": "", "delay_ms": 1.0}  # type: ignore[attr-defined]


def test_a_bundle_of_a_target_that_is_not_installed(make_bundle: Callable[..., Path]) -> None:
    bundle = Bundle.open(make_bundle())
    other = bundle.manifest.model_copy(update={"target": "npu"})
    with pytest.raises(TargetError, match="there is no target 'npu'"):
        open_session(Bundle(bundle.folder, other))
