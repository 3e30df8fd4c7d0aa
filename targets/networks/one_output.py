"""How classes of transformers with their outputs in one are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig

__all__ = ["OneOutput"]


class OneOutput:
    """Loads such networks, as the Auto classes of transformers load others."""

    problem: ClassVar[str]
    """What they are for, in words."""
    known: ClassVar[str]
    """The Auto class of transformers that knows the classes they are made of."""
    made: ClassVar[Callable[[str], type]]
    """The class with one output, by the name of the one that it is made of."""

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> Any:
        """Read a checkpoint folder.

        Args:
            folder: Of a network with such a head.
            options: Of ``from_pretrained`` of transformers.

        Raises:
            ValueError: transformers has no such head for this kind of network.
        """
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        del options["trust_remote_code"]  # the class is known
        return cls._class_for(config).from_pretrained(folder, config=config, **options)

    @classmethod
    def from_config(cls, config: Any, *, trust_remote_code: bool = False, **options: Any) -> Any:
        """Make a network without weights.

        Raises:
            ValueError: transformers has no such head for this kind of network.
        """
        return cls._class_for(config)._from_config(config, **options)

    @classmethod
    def _class_for(cls, config: Any) -> Any:
        known = getattr(transformers, cls.known)._model_mapping
        if type(config) not in known:
            raise ValueError(f"no head for {cls.problem} is known for {config.model_type}")
        return cls.made(known[type(config)].__name__)
