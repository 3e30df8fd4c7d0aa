"""EfficientNet-Lite: EfficientNet for small devices, without squeeze-and-excitation and swish.

Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, and
the Lite variants of its authors: ReLU6 in place of swish, no squeeze-and-excitation, and a stem, a
head and a first and last stage that do not grow with the network. Padding is TensorFlow's SAME.

Sizes of layers are read from the weights alone, so that a pruned network runs as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutput,
)

__all__ = [
    "EfficientNetLiteBlock",
    "EfficientNetLiteConfig",
    "EfficientNetLiteForImageClassification",
    "EfficientNetLiteModel",
    "EfficientNetLitePreTrainedModel",
    "SamePadding",
    "register",
]


class EfficientNetLiteConfig(PretrainedConfig):  # type: ignore[misc]  # transformers has no types
    """Config of an EfficientNet-Lite; the defaults are those of Lite0.

    Args:
        width_coefficient: Scales the channels of all stages.
        depth_coefficient: Scales the blocks of all stages but the first and last.
        image_size: Height and width that the weights were trained for, in pixels; others work too.
        dropout_rate: Of the pooled features, in training.
        drop_connect_rate: Probability to skip the last block in training; less for those before.
        num_channels: Channels of an image.
        depth_divisor: The channels of a stage are a multiple of this.
        stem_channels: Output channels of the first convolution.
        hidden_dim: Output channels of the last convolution.
        kernel_sizes: By stage, of the depthwise convolution.
        strides: By stage, of its first block.
        expand_ratios: By stage, by how much a block widens its input.
        out_channels: By stage, before scaling.
        num_block_repeats: By stage, before scaling.
        batch_norm_eps: Added to the variance.
        batch_norm_momentum: Weight of a new batch in the running statistics, as torch has it:
            TensorFlow's 0.99 is 0.01 here.
    """

    model_type = "efficientnet-lite"

    def __init__(
        self,
        *,
        width_coefficient: float = 1.0,
        depth_coefficient: float = 1.0,
        image_size: int = 224,
        dropout_rate: float = 0.2,
        drop_connect_rate: float = 0.2,
        num_channels: int = 3,
        depth_divisor: int = 8,
        stem_channels: int = 32,
        hidden_dim: int = 1280,
        kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3),
        strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1),
        expand_ratios: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6),
        out_channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320),
        num_block_repeats: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1),
        batch_norm_eps: float = 1e-3,
        batch_norm_momentum: float = 0.01,
        **kwargs: Any,
    ) -> None:
        self.width_coefficient = width_coefficient
        self.depth_coefficient = depth_coefficient
        self.image_size = image_size
        self.dropout_rate = dropout_rate
        self.drop_connect_rate = drop_connect_rate
        self.num_channels = num_channels
        self.depth_divisor = depth_divisor
        self.stem_channels = stem_channels
        self.hidden_dim = hidden_dim
        self.kernel_sizes = list(kernel_sizes)
        self.strides = list(strides)
        self.expand_ratios = list(expand_ratios)
        self.out_channels = list(out_channels)
        self.num_block_repeats = list(num_block_repeats)
        self.batch_norm_eps = batch_norm_eps
        self.batch_norm_momentum = batch_norm_momentum
        super().__init__(**kwargs)

    def scaled_channels(self) -> list[int]:
        """Output channels by stage: the nearest multiple of the divisor, at most 10% too few."""
        scaled = []
        for channels in self.out_channels:
            wanted = channels * self.width_coefficient
            divisor = self.depth_divisor
            rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
            scaled.append(rounded if rounded >= 0.9 * wanted else rounded + divisor)
        return scaled

    def scaled_repeats(self) -> list[int]:
        """Blocks by stage, rounded up; the first and the last stage are not scaled."""
        repeats = [math.ceil(self.depth_coefficient * each) for each in self.num_block_repeats]
        repeats[0], repeats[-1] = self.num_block_repeats[0], self.num_block_repeats[-1]
        return repeats


class SamePadding(nn.Module):
    """Zeros around an image for a strided convolution, as TensorFlow's SAME has them.

    The output of the convolution has 1 / stride of the input's height and width, rounded up; where
    the number of zeros is odd, the additional ones are at the bottom and at the right.

    Args:
        kernel_size: Of the convolution, at least its stride.
        stride: Of the convolution.
    """

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.stride = stride

    def forward(self, pixels: Tensor) -> Tensor:
        """Pad (N, C, H, W)."""
        height, width = pixels.shape[2:]
        return functional.pad(pixels, (*self._zeros(width), *self._zeros(height)))

    def _zeros(self, size: int) -> tuple[int, int]:
        # Without a branch, so that an export with free sizes holds for odd and even ones.
        zeros = self.kernel_size - 1 - (size - 1) % self.stride
        return zeros // 2, zeros - zeros // 2


class _ConvNorm(nn.Module):
    """A convolution without bias, and batch normalization."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        strided = stride > 1
        self.padding = SamePadding(kernel_size, stride) if strided else nn.Identity()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=0 if strided else kernel_size // 2,
            groups=in_channels if depthwise else 1,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(
            out_channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )

    def forward(self, features: Tensor) -> Tensor:
        normalized: Tensor = self.norm(self.conv(self.padding(features)))
        return normalized


class EfficientNetLiteBlock(nn.Module):
    """An inverted residual block: widen, filter each channel, narrow."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int,
        stride: int,
        expand_ratio: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        wide = in_channels * expand_ratio
        self.expand = _ConvNorm(config, in_channels, wide) if expand_ratio != 1 else None
        self.depthwise = _ConvNorm(
            config, wide, wide, kernel_size=kernel_size, stride=stride, depthwise=True
        )
        self.project = _ConvNorm(config, wide, out_channels)
        self.activation = nn.ReLU6()
        self.has_skip = stride == 1 and in_channels == out_channels
        self.drop_rate = drop_rate

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        wide = features if self.expand is None else self.activation(self.expand(features))
        narrow: Tensor = self.project(self.activation(self.depthwise(wide)))
        if not self.has_skip:
            return narrow
        return features + self._drop(narrow)

    def _drop(self, narrow: Tensor) -> Tensor:
        """Stochastic depth: in training, zero the block for some of the images."""
        if not self.training or self.drop_rate == 0:
            return narrow
        kept = torch.full((len(narrow), 1, 1, 1), 1 - self.drop_rate, device=narrow.device)
        return narrow * (torch.bernoulli(kept) / kept).to(narrow.dtype)


class EfficientNetLitePreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # as above
    """What transformers needs to know of the network."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("EfficientNetLiteBlock",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            init.normal_(module.weight, mean=0.0, std=math.sqrt(2 / fan_out))
        else:
            super()._init_weights(module)


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The network without classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = _ConvNorm(
            config, config.num_channels, config.stem_channels, kernel_size=3, stride=2
        )
        repeats = config.scaled_repeats()
        num_blocks = sum(repeats)
        blocks: list[nn.Module] = []
        in_channels = config.stem_channels
        for stage, out_channels in enumerate(config.scaled_channels()):
            for repeat in range(repeats[stage]):
                block = EfficientNetLiteBlock(
                    config,
                    in_channels,
                    out_channels,
                    kernel_size=config.kernel_sizes[stage],
                    stride=config.strides[stage] if repeat == 0 else 1,
                    expand_ratio=config.expand_ratios[stage],
                    drop_rate=config.drop_connect_rate * len(blocks) / num_blocks,
                )
                blocks.append(block)
                in_channels = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.head = _ConvNorm(config, in_channels, config.hidden_dim)
        self.activation = nn.ReLU6()
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool = False, **_: Any
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Compute the features of images.

        Args:
            pixel_values: Images, (N, C, H, W).
            output_hidden_states: Return the outputs of the stem and of each block too.

        Returns:
            `last_hidden_state` (N, hidden_dim, H / 32, W / 32) and `pooler_output`, their means
            over the image, (N, hidden_dim).
        """
        features = self.activation(self.stem(pixel_values))
        states = [features]
        for block in self.blocks:
            features = block(features)
            states.append(features)
        features = self.activation(self.head(features))
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features,
            pooler_output=self.pooler(features).flatten(1),
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The network with a linear classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.classifier = nn.Linear(config.hidden_dim, config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: Images, (N, C, H, W).
            labels: Their classes, (N,) of int64, for the loss: cross-entropy.
            output_hidden_states: Return the outputs of the stem and of each block too.

        Returns:
            `logits` (N, labels), and `loss` if there are labels.
        """
        outputs = self.efficientnet_lite(pixel_values, output_hidden_states)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def register() -> None:
    """Let the Auto classes of transformers know the network; a second call changes nothing."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoModelForImageClassification.register(
        EfficientNetLiteConfig, EfficientNetLiteForImageClassification, exist_ok=True
    )
