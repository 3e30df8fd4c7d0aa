"""What a network is put into while it is looked at: all of it trainable, and quietly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["all_trainable", "quiet_tracing"]


@contextmanager
def all_trainable(module: nn.Module) -> Iterator[None]:
    """In eval mode, with a gradient for each parameter: tracing does not see a frozen one.

    Mode and flags are put back, those of a parameter by its name: it may be another one then.
    """
    flags = {name: each.requires_grad for name, each in module.named_parameters()}
    training = module.training
    module.eval().requires_grad_(True)
    try:
        yield
    finally:
        module.train(training)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(flags[name])


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Keep torch-pruning from warning of parameters in no layer: no cut touches them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
        yield
