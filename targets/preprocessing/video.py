"""Videos: some of their frames, evenly spread, each read as an image."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from targets.errors import InputError
from targets.preprocessing.base import FIXED_SIZE, Encoded, Encoder, Preprocessing, Rows
from targets.preprocessing.image import PIXELS, ImageEncoder, ImagePreprocessing
from targets.preprocessing.npy import read_npy
from targets.signature import Arrays, Signature

__all__ = ["VideoEncoder", "VideoPreprocessing"]

_ARRAY = b"\x93NUMPY"
_PARTS = re.compile(r"(\D*)(\d*)")
"""How the content of an .npy file begins."""


class VideoPreprocessing(Preprocessing):
    """Take as many frames as the model sees, and prepare each as an image.

    Of T frames the model sees number floor(i * T / num_frames), i from 0, as the video processors
    of transformers choose them; of a shorter video some frames are seen several times.
    """

    kind: Literal["video"] = "video"
    num_frames: int = Field(ge=1, le=1024)
    """That the model sees of a video."""
    image: ImagePreprocessing
    """Of a frame."""

    noun: ClassVar[str] = "video"
    needs: ClassVar[str] = PIXELS
    unit: ClassVar[str | None] = None
    usual_length: ClassVar[int] = FIXED_SIZE
    libraries: ClassVar[tuple[str, ...]] = ImagePreprocessing.libraries
    extra: ClassVar[str | None] = ImagePreprocessing.extra
    wanted: ClassVar[str] = "the path of an animated image, a folder of images or an .npy file,"
    suffixes: ClassVar[tuple[str, ...]] = (".gif", ".webp", ".png", ".npy")
    folders: ClassVar[bool] = True

    @property
    def longest(self) -> int:
        """See the base class."""
        return FIXED_SIZE

    def open(self, folder: Path, *, source: Path | None = None) -> VideoEncoder:
        """See the base class."""
        return VideoEncoder(self, self.image.open(folder, source=source))

    def feeds(self, rows: Rows, signature: Signature) -> Arrays:
        """See the base class.  # (N, num_frames, channels, height, width)"""
        for spec in signature.inputs:
            if spec.name != PIXELS:
                raise self.unknown_input(spec.name, [PIXELS])
        pixels = self.batch(rows[PIXELS])
        return {spec.name: pixels.astype(spec.dtype, copy=False) for spec in signature.inputs}

    def batch(self, videos: Sequence[NDArray[np.generic]]) -> NDArray[np.float32]:
        """Normalized videos.

        Args:
            videos: (num_frames, height, width, channels) uint8 each.

        Returns:
            (N, num_frames, channels, height, width)
        """
        frames = self.image.batch([frame for video in videos for frame in video])
        return frames.reshape(len(videos), -1, *frames.shape[1:])

    def synthetic(
        self, lengths: Sequence[int], *, num_ids: int, random: np.random.Generator
    ) -> dict[str, list[NDArray[np.generic]]]:
        """See the base class."""
        size = self.image
        shape = (len(lengths), self.num_frames, size.height, size.width, size.channels)
        return {PIXELS: list(random.integers(0, 256, size=shape, dtype=np.uint8))}


class VideoEncoder(Encoder):
    """Reads videos: paths or content of animated images or .npy files, folders, or arrays.

    Arrays are (frames, height, width, 3) uint8; the images of a folder go by their names.
    """

    def __init__(self, preprocessing: VideoPreprocessing, images: ImageEncoder) -> None:
        self.preprocessing = preprocessing
        self.images = images

    def encode(self, inputs: Sequence[Any]) -> Encoded:
        """See the base class.  # (num_frames, height, width, channels) uint8 a row"""
        self.preprocessing.check_inputs(inputs)
        rows: list[NDArray[np.generic]] = [
            self._read(each, str(each) if isinstance(each, str | Path) else f"videos[{index}]")
            for index, each in enumerate(inputs)
        ]
        return Encoded({PIXELS: rows}, (False,) * len(rows))

    def _read(self, value: Any, where: str) -> NDArray[np.generic]:
        if isinstance(value, str | Path) and Path(value).is_dir():
            value = _images_of(Path(value))
            frames: Iterator[Any] = (value[number] for number in self._chosen(len(value)))
        else:
            content = _content(value, where)
            if isinstance(content, bytes):
                frames = self._animation(content, where)
            else:
                frames = (content[number] for number in self._chosen(len(content)))
        return np.stack(
            [
                self.images.read(
                    frame, str(frame) if isinstance(frame, Path) else f"{where}, frame {number}"
                )[0]
                for number, frame in enumerate(frames)
            ]
        )

    def _chosen(self, count: int) -> list[int]:
        """The numbers of the frames that are seen, of so many."""
        wanted = self.preprocessing.num_frames
        return [number * count // wanted for number in range(wanted)]

    def _animation(self, content: bytes, where: str) -> Iterator[Any]:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(content)) as file:
                for number in self._chosen(getattr(file, "n_frames", 1)):
                    file.seek(number)
                    yield file.copy()
        except UnidentifiedImageError as error:  # its own words name an object in memory
            raise _unreadable(where, "no format that Pillow knows") from error
        except Exception as error:  # of a damaged file Pillow may say anything
            raise _unreadable(where, f"{type(error).__name__}: {error}") from error


def _content(value: Any, where: str) -> NDArray[Any] | bytes:
    """The frames of an array, or the content of an animated image."""
    if isinstance(value, str | Path):
        try:
            value = Path(value).read_bytes()
        except (OSError, ValueError) as error:
            raise _unreadable(where, getattr(error, "strerror", None) or str(error)) from error
    if isinstance(value, bytes) and value.startswith(_ARRAY):
        value = read_npy(value, where=where)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, np.ndarray):
        raise _no_video(where, f"{type(value).__name__} {value!r:.60}")
    if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3 or not value.size:
        raise _no_video(where, f"{value.dtype} of shape {value.shape}")
    return value


def _images_of(folder: Path) -> list[Path]:
    """The images of a folder in the order of their names; what is hidden is passed over.

    Raises:
        InputError: It holds none.
    """
    found = [
        each
        for each in sorted(folder.iterdir(), key=_in_order)
        if each.suffix.lower() in ImagePreprocessing.suffixes and not each.name.startswith(".")
    ]
    if not found:
        raise InputError(
            "the folder of a video holds no images",
            where=folder,
            given=", ".join(sorted(each.name for each in folder.iterdir())[:5]) or "nothing",
            fix=f"put its frames there, ending in {', '.join(ImagePreprocessing.suffixes)}",
        )
    return found


def _in_order(file: Path) -> tuple[list[tuple[str, int]], str]:
    """What to sort by: frame2.png comes before frame10.png."""
    return [(text, int(number or 0)) for text, number in _PARTS.findall(file.name)], file.name


def _unreadable(where: str, given: str) -> InputError:
    return InputError(
        "the video cannot be read",
        where=where,
        given=given,
        fix="pass an animated GIF, WebP or PNG, or a folder with its frames as images: "
        "ffmpeg -i FILE FOLDER/%05d.png writes them",
    )


def _no_video(where: str, given: str) -> InputError:
    return InputError(
        "this is not a video",
        where=where,
        given=given,
        fix="pass a path, the content of a file, or uint8 of shape (frames, height, width, 3)",
    )
