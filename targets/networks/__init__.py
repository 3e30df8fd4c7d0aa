"""Networks that transformers has not, or not in this form, registered for what holds one."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from targets.discovery import package_source
from targets.errors import CheckpointError, PluginError

__all__ = ["ENTRY_POINTS", "NETWORKS", "network_source", "register_network"]

NETWORKS: Mapping[str, str] = {
    "efficientnet-lite": "targets.networks.efficientnet_lite",
    "patchtst": "targets.networks.time_series",
    "patchtsmixer": "targets.networks.time_series",
    "whisper": "targets.networks.whisper",
}
"""The model type in a checkpoint's config -> the module that registers it."""
ENTRY_POINTS = "compressor.networks"
"""Where other distributions name, by the model type, a function that registers it."""


def register_network(folder: Path) -> None:
    """Let the Auto classes of transformers know the network of this checkpoint.

    A config that cannot be read is left to what loads the checkpoint, and says so better.

    Raises:
        CheckpointError: The network is neither ours, nor one of transformers, nor announced by
            another distribution.
        PluginError: What another distribution announces fails.
    """
    family = _family(folder)
    if family is None:
        return
    if family in NETWORKS:
        importlib.import_module(NETWORKS[family]).register()
        return
    entry = _announced(family)
    if entry is None:
        _check_known(family, folder)
        return
    try:
        entry.load()()
    except Exception as error:  # whatever the code of a stranger raises
        owner = "another distribution" if entry.dist is None else entry.dist.name
        raise PluginError(
            f"{owner} announces the network {family!r}, which cannot be used",
            where=f"entry point {entry.group}: {entry.value}",
            given=f"{type(error).__name__}: {error}",
            fix=f"update {owner}; its author must name a function without arguments that registers "
            "the network: see docs/add-a-network.md",
        ) from error


def network_source(folder: Path) -> dict[str, str]:
    """What tells one state of somebody else's network from another; see `package_source`.

    Returns:
        Empty for a checkpoint of a network of ours, or of transformers.
    """
    family = _family(folder)
    entry = None if family is None or family in NETWORKS else _announced(family)
    return {} if entry is None else package_source(entry.module)


def _family(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    family = config.get("model_type") if isinstance(config, dict) else None
    return None if family is None else str(family)


def _announced(family: str) -> importlib.metadata.EntryPoint | None:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS, name=family)
    return next(iter(found), None)


def _check_known(family: str, folder: Path) -> None:
    from transformers import CONFIG_MAPPING, __version__

    if family not in CONFIG_MAPPING:
        raise CheckpointError(
            f"transformers {__version__} knows no network of this kind",
            where=f"{folder / 'config.json'}, field model_type",
            given=family,
            fix="correct model_type, or install a version of transformers that has the network; "
            "code that comes with a checkpoint is never run: for a network of your own see "
            "docs/add-a-network.md",
        )
