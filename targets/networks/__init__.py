"""Networks that transformers has not, or not in this form, registered for what holds one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

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
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    module = NETWORKS.get(str(config.get("model_type"))) if isinstance(config, dict) else None
    if module is not None:
        importlib.import_module(module).register()
