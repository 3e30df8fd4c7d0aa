"""Networks that leave out layers and parts of their input at random while they are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["keep_whole"]


def keep_whole(network: nn.Module) -> None:
    """Let all layers of a network take part in every step of a training, and read all of the input.

    Pre-training of networks that read sound leaves out layers and parts of the input at random.
    Distillation compares both, and their mask does not fit on a short recording.

    Args:
        network: A Hugging Face model; changed in place, its config too.
    """
    for part in (network.config, *network.modules()):
        for name in ("layerdrop", "encoder_layerdrop"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
    if hasattr(network.config, "apply_spec_augment"):
        network.config.apply_spec_augment = False
