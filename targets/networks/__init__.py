"""Networks that transformers has not, or not in this form, registered for what holds one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

from targets.errors import CheckpointError

__all__ = ["NETWORKS", "register_network"]

NETWORKS: Mapping[str, str] = {
    "efficientnet-lite": "targets.networks.efficientnet_lite",
    "patchtst": "targets.networks.time_series",
    "patchtsmixer": "targets.networks.time_series",
    "whisper": "targets.networks.whisper",
}
"""The model type in a checkpoint's config -> the module that registers it."""


def register_network(folder: Path) -> None:
    """Let the Auto classes of transformers know the network of this checkpoint, if it is ours.

    A config that cannot be read is left to what loads the checkpoint, and says so better.

    Raises:
        CheckpointError: The network is neither ours nor one of transformers.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    family = config.get("model_type") if isinstance(config, dict) else None
    if family is None:
        return
    module = NETWORKS.get(str(family))
    if module is None:
        _check_known(str(family), folder)
    else:
        importlib.import_module(module).register()


def _check_known(family: str, folder: Path) -> None:
    from transformers import CONFIG_MAPPING, __version__

    if family not in CONFIG_MAPPING:
        raise CheckpointError(
            f"transformers {__version__} knows no network of this kind",
            where=f"{folder / 'config.json'}, field model_type",
            given=family,
            fix="correct model_type, or install a version of transformers that has the network; "
            "code that comes with a checkpoint is never run; to teach it one of your own see "
            'docs/architecture.md, "Another network"',
        )
