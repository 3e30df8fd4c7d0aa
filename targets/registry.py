"""The targets that are installed, by name."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import ValidationError

import targets.runtimes
from targets.base import Session, Target
from targets.bundle import Bundle
from targets.discovery import discover
from targets.environment import cpu_features
from targets.errors import TargetError

__all__ = ["available", "bundle_target", "get", "open_session", "usual_batch_size"]


BATCH_SIZE = 32
"""Inputs that run at a time, where they have the same answers alone."""


@functools.cache
def available() -> dict[str, type[Target]]:
    """Every target, by name: those in ``targets/runtimes/`` and those of other distributions.

    Other distributions announce theirs under the entry-point group ``compressor.targets``.
    """
    return discover(targets.runtimes, Target, "compressor.targets")  # type: ignore[type-abstract]


@functools.cache
def _own() -> dict[str, type[Target]]:
    """Those in ``targets/runtimes/``; what others announce, and may have broken, is passed over."""
    return discover(targets.runtimes, Target, None)  # type: ignore[type-abstract]


def get(name: str, **settings: Any) -> Target:
    """Make a target from its name and settings.

    Raises:
        TargetError: No target has that name, or it does not take these settings.
    """
    cls = _own().get(name) or available().get(name)
    if cls is None:
        raise TargetError(
            f"there is no target {name!r}", given=name, fix=f"use one of {', '.join(available())}"
        )
    try:
        return cls(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise TargetError(
            f"the target {name} does not take these settings: {message[0].lower()}{message[1:]}",
            where=".".join(map(str, first["loc"])) or name,
            given=settings,
            fix=f"its settings are {', '.join(cls.model_fields) or '(none)'}",
        ) from error


def open_session(bundle: Bundle, *, threads: int = 1) -> Session:
    """Load a bundle on the target it was made for.

    Raises:
        TargetError: The CPU lacks what the bundle needs, or the runtime refused it.
    """
    manifest = bundle.manifest
    if manifest.cpu_features and not set(manifest.cpu_features) & set(cpu_features()):
        raise TargetError(
            "this CPU lacks instructions that the bundle needs for right results",
            where=bundle.source,
            given=f"the bundle needs {' or '.join(manifest.cpu_features)}; "
            f"the CPU has {', '.join(cpu_features()) or 'none of those that matter'}",
            fix="lower the model on a CPU like this one, or use another precision here",
        )
    threads = min(threads, manifest.max_threads or threads)
    return bundle_target(bundle).load(bundle, threads=threads)


def bundle_target(bundle: Bundle) -> Target:
    """The target that a bundle was made for, with its settings."""
    return get(bundle.manifest.target, **bundle.manifest.target_settings)


def usual_batch_size(bundle: Bundle) -> int:
    """How many inputs run at a time: one where it has another answer among others.

    See `Target.runs_alone`.
    """
    return 1 if bundle_target(bundle).runs_alone(bundle) else BATCH_SIZE
