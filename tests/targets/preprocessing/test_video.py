"""Videos become evenly spread frames, each as the image of it; what is none is refused in words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter

from targets import Signature, TensorSpec
from targets.errors import InputError
from targets.evaluation_pack import EvaluationPack
from targets.preprocessing import AnyPreprocessing, ImagePreprocessing, VideoPreprocessing

PIXELS = "pixel_values"
IMAGE = ImagePreprocessing(
    height=8, width=8, shortest_edge=10, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.2)
)
WANTED = VideoPreprocessing(num_frames=4, image=IMAGE)


def frames_of(count: int) -> NDArray[np.uint8]:
    """Frames of (12, 16) pixels; the shade of each tells its number."""
    shades = 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    slope = np.arange(16, dtype=np.uint8)[None, None, :, None]
    return np.broadcast_to(shades + slope, (count, 12, 16, 3)).copy()


def animated(frames: NDArray[np.uint8], form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    first, *rest = map(Image.fromarray, frames)
    first.save(stream, form, save_all=True, append_images=rest, **options)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(*values: Any, preprocessing: VideoPreprocessing = WANTED) -> list[NDArray[Any]]:
    return list(preprocessing.open(Path()).encode(values).rows[PIXELS])


def as_images(*frames: Any) -> NDArray[Any]:
    return np.stack(IMAGE.open(Path()).encode(frames).rows[PIXELS])


def refusal(value: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        read(value)
    return caught.value


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (4, [0, 1, 2, 3]),
        (8, [0, 2, 4, 6]),
        (10, [0, 2, 5, 7]),
        (3, [0, 0, 1, 2]),
        (1, [0, 0, 0, 0]),
    ],
)
def test_frames_are_spread_evenly_and_read_as_images(count: int, chosen: list[int]) -> None:
    frames = frames_of(count)
    [row] = read(frames)
    assert row.shape == (4, 8, 8, 3)
    assert row.dtype == np.uint8
    np.testing.assert_array_equal(row, as_images(*frames[chosen]))


def test_every_form_of_a_video_gives_the_same_row(tmp_path: Path) -> None:
    frames = frames_of(10)
    [expected] = read(frames)
    contents = {
        "a.png": animated(frames, "PNG"),
        "a.webp": animated(frames, "WEBP", lossless=True),
        "a.gif": animated(frames, "GIF"),  # all of its shades fit into a palette
        "a.npy": npy(frames),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in reversed(range(10)):
        Image.fromarray(frames[number]).save(folder / f"{number:02}.PNG")
    (folder / "notes.txt").write_text("no frame")
    (folder / "._00.png").write_bytes(b"what a Mac leaves")
    forms = [*(tmp_path / name for name in contents), *contents.values(), folder, str(folder)]
    for form, row in zip(forms, read(*forms), strict=True):
        np.testing.assert_array_equal(row, expected, err_msg=f"{form!r:.60}")


def test_frames_go_by_the_numbers_in_their_names(tmp_path: Path) -> None:
    frames = frames_of(12)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"frame{number}.png")
    [row], [expected] = read(tmp_path), read(frames)
    np.testing.assert_array_equal(row, expected)


def test_batches_are_those_of_the_images() -> None:
    first, second = frames_of(4), frames_of(8)
    rows = read(first, second)
    signature = Signature(
        inputs=(TensorSpec(name=PIXELS, dtype="float32", shape=("batch", 4, 3, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=("batch", 2)),),
    )
    feeds = WANTED.feeds({PIXELS: rows}, signature)
    assert feeds[PIXELS].shape == (2, 4, 3, 8, 8)
    np.testing.assert_array_equal(feeds[PIXELS][0], IMAGE.batch(list(as_images(*first))))
    np.testing.assert_array_equal(feeds[PIXELS][1], IMAGE.batch(list(as_images(*second[::2]))))
    other = signature.model_copy(
        update={"inputs": (signature.inputs[0].model_copy(update={"name": "sound"}),)}
    )
    with pytest.raises(InputError, match="takes an input 'sound', which video does not provide"):
        WANTED.feeds({PIXELS: rows}, other)


def test_a_pack_of_videos_comes_back_equal(tmp_path: Path) -> None:
    rows = read(frames_of(4), frames_of(9))
    pack = EvaluationPack.from_rows({PIXELS: rows}, [1, 0], preprocessing=WANTED)
    pack.save(tmp_path / "pack.safetensors")
    found = EvaluationPack.load(tmp_path / "pack.safetensors")
    assert found.preprocessing == WANTED
    np.testing.assert_array_equal(found.inputs[PIXELS], np.stack(rows))


def test_synthetic_videos_have_the_size_of_the_model() -> None:
    rows = WANTED.synthetic((0, 0), num_ids=1, random=np.random.default_rng(0))[PIXELS]
    assert [(row.shape, row.dtype) for row in rows] == [((4, 8, 8, 3), np.uint8)] * 2


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (7, "int 7"),
        ([1, 2], "list [1, 2]"),
        (np.zeros((12, 16, 3), np.uint8), "uint8 of shape (12, 16, 3)"),
        (np.zeros((2, 12, 16, 1), np.uint8), "uint8 of shape (2, 12, 16, 1)"),
        (np.zeros((0, 12, 16, 3), np.uint8), "uint8 of shape (0, 12, 16, 3)"),
        (npy(np.zeros((2, 12, 16, 3))), "float64 of shape (2, 12, 16, 3)"),
    ],
)
def test_what_is_no_video_is_refused(value: Any, given: str) -> None:
    error = refusal(value)
    assert error.what == "this is not a video"
    assert error.where == "videos[0]"
    assert error.given == given
    assert "(frames, height, width, 3)" in str(error.fix)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00\x00\x18ftypmp42", animated(frames_of(8), "GIF")[:-700]],
    ids=["empty", "mp4", "truncated"],
)
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    for value, where in ((path, str(path)), (content, "videos[0]")):
        error = refusal(value)
        assert (error.what, error.where) == ("the video cannot be read", where)
        assert error.given in (
            "no format that Pillow knows",
            "IndexError: index out of range",
        )
        assert "ffmpeg -i FILE" in str(error.fix)


def test_absent_files_and_folders_without_frames_are_told(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent.gif")
    assert (error.what, error.given) == ("the video cannot be read", "No such file or directory")
    assert "ffmpeg -i FILE" in str(error.fix)
    (tmp_path / "clip.mp4").write_bytes(b"frames")
    error = refusal(tmp_path)
    assert error.what == "the folder of a video holds no images"
    assert error.where == str(tmp_path) or error.where == tmp_path
    assert error.given == "clip.mp4"


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    Image.fromarray(frames_of(1)[0]).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    error = refusal(tmp_path)
    assert error.what == "the image cannot be read"
    assert error.where == str(tmp_path / "1.png")


def test_objects_in_arrays_are_refused() -> None:
    error = refusal(npy(np.array([{}], dtype=object)))
    assert error.what == "the array cannot be read"
    assert "allow_pickle=False" in str(error.given)


def test_manifests_name_the_frames() -> None:
    adapter: TypeAdapter[AnyPreprocessing] = TypeAdapter(AnyPreprocessing)
    assert adapter.validate_json(WANTED.model_dump_json()) == WANTED
