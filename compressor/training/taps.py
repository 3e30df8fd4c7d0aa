"""Read hidden states and attention projections of an encoder while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from compressor.errors import PassError
from targets.encoder import encoder_layers, layer_stacks

__all__ = ["TappedEncoder", "TappedOutputs"]


class TappedOutputs(NamedTuple):
    """What a tapped encoder gives.

    Attributes:
        logits: (N, classes); of every token, (N, L, classes); or of places of an image,
            (N, classes, height, width); or of queries, (N, queries, classes + 1 + 4). Where there
            are no classes, the embeddings, (N, size).
        hidden: One (N, L, d) a tapped layer.
        projections: Queries, keys and values, (N, L, heads * head_size) each, or nothing.
    """

    logits: Tensor
    hidden: tuple[Tensor, ...]
    projections: tuple[Tensor, ...]

    def first(self, num_rows: int) -> TappedOutputs:
        """The same for the first rows only."""
        return TappedOutputs(
            self.logits[:num_rows],
            tuple(each[:num_rows] for each in self.hidden),
            tuple(each[:num_rows] for each in self.projections),
        )


class TappedEncoder(nn.Module):
    """A classifier that also gives what distillation compares.

    The hooks live only while a forward runs, so the classifier stays as it was.

    Args:
        classifier: A Hugging Face classifier.
        hidden_layers: Layers whose outputs to give, from 0.
        relation_layer: Layer whose queries, keys and values to give, or None.
        hidden_size: Project the hidden states to this width; None leaves them.

    Raises:
        PassError: The layers of the classifier were not found.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        hidden_layers: Sequence[int] = (),
        relation_layer: int | None = None,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.hidden_layers = tuple(hidden_layers)
        self.relation_layer = relation_layer
        if (self.hidden_layers or relation_layer is not None) and not encoder_layers(classifier):
            raise PassError(
                "the layers of the model were not found, so they cannot be compared",
                where=type(classifier).__name__,
                fix="set hidden_weight and relation_weight to 0",
            )
        self.projection: nn.Module = nn.Identity()
        if self.hidden_layers and hidden_size is not None:
            width = encoder_layers(classifier)[0].query.in_features
            if width != hidden_size:
                self.projection = nn.Linear(width, hidden_size, bias=False)

    def forward(self, **inputs: Tensor) -> TappedOutputs:
        """Run the classifier on its own inputs, (N, ...) each."""
        with _caught(self._taps()) as caught:
            logits = self.classifier(**inputs)[0]
        # Some take the channels of a row apart: (N, channels, L, d), or (N * channels, L, d).
        caught = [each.reshape(len(logits), -1, each.shape[-1]) for each in caught]
        num_hidden = len(self.hidden_layers)
        return TappedOutputs(
            logits=logits,
            hidden=tuple(self.projection(states) for states in caught[:num_hidden]),
            projections=tuple(caught[num_hidden:]),
        )

    def _taps(self) -> list[nn.Module]:
        stacks: Any = layer_stacks(self.classifier) if self.hidden_layers else ()
        layers = [layer for stack in stacks for layer in stack]
        taps: list[nn.Module] = [layers[index] for index in self.hidden_layers]
        if self.relation_layer is not None:
            layer = encoder_layers(self.classifier)[self.relation_layer]
            taps += [layer.query, layer.key, layer.value]
        return taps


@contextmanager
def _caught(modules: Sequence[nn.Module]) -> Iterator[list[Any]]:
    """Collect the outputs of modules, in the order given."""
    outputs: list[Any] = [None] * len(modules)

    def keep(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            # Some families return (states, attentions).
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [each.register_forward_hook(keep(index)) for index, each in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
