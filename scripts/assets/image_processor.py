"""Writing `preprocessor_config.json`: how an image becomes the input of a model."""

import json
from collections.abc import Sequence
from pathlib import Path

_BICUBIC = 3
"""As Pillow counts its filters."""


def write_image_processor(
    folder: Path,
    *,
    shortest_edge: int,
    crop: int,
    mean: Sequence[float],
    std: Sequence[float],
    rescale: bool,
) -> None:
    """Describe a bicubic resize, a centre crop and a normalization, as transformers reads them.

    Args:
        folder: The model folder.
        shortest_edge: Height or width after the resize, whichever is less, in pixels.
        crop: Height and width of the crop, in pixels.
        mean: To subtract from each channel, red, green, blue.
        std: To divide each channel by after that.
        rescale: Mean and std are on a scale of 0 to 1, else on one of 0 to 255.
    """
    config: dict[str, object] = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shortest_edge},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": rescale,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
    if rescale:
        config["rescale_factor"] = 1 / 255
    text = json.dumps(config, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
