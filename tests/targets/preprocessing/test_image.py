"""Images become the arrays that transformers makes of them, and a pack of them keeps its order."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from targets import Bundle, Signature, TensorSpec
from targets.errors import InputError, MissingLibraryError
from targets.evaluation_pack import EvaluationPack
from targets.feeds import FeedsSpec, num_token_ids, synthetic_feeds, usual_length
from targets.preprocessing import AnyPreprocessing, ImagePreprocessing, TextPreprocessing

PIXELS = "pixel_values"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZED = {"mean": MEAN, "std": STD}
# Width and height: square, wide, tall, odd, and smaller than what is cut out of them.
SIZES = [(40, 40), (97, 41), (33, 120), (31, 29), (8, 9), (300, 17), (1, 1)]


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth shapes and some noise, so that both the filter and the place of the cut show."""
    random = np.random.default_rng(seed)
    down, right = np.mgrid[:height, :width]
    waves = [np.sin(down / (3 + each)) * np.cos(right / (5 - each)) for each in range(3)]
    values = 120 + 90 * np.stack(waves, axis=-1) + random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert(mode)


def content(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def arrays(preprocessing: ImagePreprocessing, *values: Any) -> NDArray[np.float32]:
    rows = preprocessing.open(Path()).encode(values).rows[PIXELS]
    assert {row.dtype for row in rows} == {np.dtype(np.uint8)}
    return preprocessing.batch(rows)


def signature(preprocessing: ImagePreprocessing, name: str = PIXELS) -> Signature:
    size = (preprocessing.channels, preprocessing.height, preprocessing.width)
    return Signature(
        inputs=(TensorSpec(name=name, dtype="float32", shape=("batch", *size)),),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("batch", 1)),
            TensorSpec(name="map", dtype="float32", shape=("batch", *size)),
        ),
    )


# Against transformers


def bit(**settings: Any) -> Any:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    return BitImageProcessorPil(image_mean=MEAN, image_std=STD, **settings)


def vit(**settings: Any) -> Any:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(image_mean=MEAN, image_std=STD, **settings)


def deit(**settings: Any) -> Any:
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    return DeiTImageProcessorPil(image_mean=MEAN, image_std=STD, **settings)


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


REFERENCES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "shortest edge, then a crop": (
        lambda: bit(size={"shortest_edge": 32}, crop_size=square(28), resample=3),
        {"height": 28, "width": 28, "shortest_edge": 32},
    ),
    "a crop larger than the shortest edge": (
        lambda: bit(size={"shortest_edge": 15}, crop_size=square(28), resample=3),
        {"height": 28, "width": 28, "shortest_edge": 15},
    ),
    "a crop that is no square": (
        lambda: bit(size={"shortest_edge": 33}, crop_size={"height": 17, "width": 28}, resample=2),
        {"height": 17, "width": 28, "shortest_edge": 33, "resample": "bilinear"},
    ),
    "both sides": (
        lambda: vit(size={"height": 19, "width": 32}, resample=2),
        {"height": 19, "width": 32, "resample": "bilinear"},
    ),
    "both sides, nearest": (
        lambda: vit(size=square(28), resample=0),
        {"height": 28, "width": 28, "resample": "nearest"},
    ),
    "both sides, lanczos": (
        lambda: vit(size=square(28), resample=1),
        {"height": 28, "width": 28, "resample": "lanczos"},
    ),
    "both sides, then a crop": (
        lambda: deit(size=square(33), crop_size=square(28), resample=3),
        {"height": 28, "width": 28, "resized": (33, 33)},
    ),
    "pixels from 0 to 255": (
        lambda: vit(size=square(28), resample=3, do_rescale=False),
        {"height": 28, "width": 28, "scale": 1.0},
    ),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("what", REFERENCES)
def test_arrays_are_those_of_transformers(what: str, size: tuple[int, int]) -> None:
    make, settings = REFERENCES[what]
    image = picture(*size)
    expected = make()(image, return_tensors="np")[PIXELS]
    found = arrays(ImagePreprocessing(**settings, **NORMALIZED), image)
    largest = 255 if "255" in what else 1
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "PA"])
def test_files_of_all_modes_are_read_as_transformers_reads_them(tmp_path: Path, mode: str) -> None:
    from transformers.image_utils import load_image

    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    image = picture(45, 31, "L" if mode == "LA" else "P" if mode == "PA" else mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(picture(45, 31, "L", seed=1))
    image.save(path, **({"transparency": 3} if mode == "PA" else {}))
    expected = vit(size=square(28), resample=2)(load_image(str(path)), return_tensors="np")[PIXELS]
    wanted = ImagePreprocessing(height=28, width=28, resample="bilinear", **NORMALIZED)
    np.testing.assert_allclose(arrays(wanted, path), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_they_were_held(tmp_path: Path, orientation: int) -> None:
    from transformers.image_utils import load_image

    path = tmp_path / "image.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(45, 31).save(path, exif=exif, quality=95)
    wanted = ImagePreprocessing(height=24, width=32)
    expected = np.asarray(load_image(str(path)).resize((32, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(wanted.open(Path()).encode([path]).rows[PIXELS][0], expected)


def test_shades_of_grey_have_one_channel() -> None:
    wanted = ImagePreprocessing(height=9, width=7, channels=1, mean=(0.5,), std=(0.25,))
    image = picture(7, 9)
    found = arrays(wanted, image)
    assert found.shape == (1, 1, 9, 7)
    expected = (np.asarray(image.convert("L")) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_8_are_read(form: str) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16), dtype=np.uint16)
    wanted = ImagePreprocessing(height=16, width=16, channels=1)
    encoded = wanted.open(Path()).encode([content(Image.fromarray(values), form)])
    np.testing.assert_array_equal(encoded.rows[PIXELS][0][..., 0], values >> 8)


def test_one_image_in_every_form_gives_the_same_row(tmp_path: Path) -> None:
    image = picture(45, 31)
    path = tmp_path / "image.png"
    image.save(path)
    forms = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    encoded = ImagePreprocessing(height=20, width=20, shortest_edge=22).open(Path()).encode(forms)
    assert encoded.truncated == (False,) * 5
    assert all(np.array_equal(row, encoded.rows[PIXELS][0]) for row in encoded.rows[PIXELS])


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 1), (12, 10, 3), (12, 10, 4)])
def test_arrays_of_every_shape(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (row,) = ImagePreprocessing(height=12, width=10).open(Path()).encode([values]).rows[PIXELS]
    expected = values.reshape(12, 10, -1)[..., :3]
    np.testing.assert_array_equal(row, np.broadcast_to(expected, row.shape))


def test_nothing_to_read_is_no_row() -> None:
    encoded = ImagePreprocessing(height=8, width=8).open(Path()).encode([])
    assert (len(encoded), encoded.rows[PIXELS]) == (0, [])


# Refusals


def refusal(*values: Any, **settings: Any) -> InputError:
    preprocessing = ImagePreprocessing(**{"height": 8, "width": 8, **settings})
    with pytest.raises(InputError) as caught:
        preprocessing.open(Path()).encode(values)
    assert caught.value.exit_code == 3
    return caught.value


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (None, "NoneType None"),
        (7, "int 7"),
        (np.zeros((8, 8), np.float32), "float32 of shape (8, 8)"),
        (np.zeros((8, 8), np.uint16), "uint16 of shape (8, 8)"),
        (np.zeros((3, 8, 8), np.uint8), "uint8 of shape (3, 8, 8)"),
        (np.zeros(8, np.uint8), "uint8 of shape (8,)"),
        (np.zeros((0, 8, 3), np.uint8), "8 x 0 pixels"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_is_no_image_is_named(value: Any, given: str) -> None:
    error = refusal(picture(8, 8), value)
    assert (error.what, error.where, error.given) == ("this is not an image", "images[1]", given)
    assert error.fix == (
        "pass a path, the bytes of a file, a Pillow image, or uint8 of shape (H, W) or (H, W, 3)"
    )


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    whole = content(picture(45, 31))
    for written, reason in (
        (b"no image", "no format that Pillow knows"),
        (b"", "no format that Pillow knows"),
        (whole[: len(whole) // 2], "OSError: "),
    ):
        path.write_bytes(written)
        error = refusal(path)
        assert (error.what, error.where) == ("the image cannot be read", str(path))
        assert str(error.given).startswith(reason)
        assert error.fix == "pass an image file that Pillow reads, such as PNG or JPEG"
        assert refusal(written).where == "images[0]"
    assert str(refusal(tmp_path / "absent.png").given).startswith("FileNotFoundError: ")
    assert str(refusal(tmp_path).given).startswith("IsADirectoryError: ")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is odd in a file
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "DDS"])
def test_damaged_files_are_refused_or_read_and_nothing_else(form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {form}")
    encoder = ImagePreprocessing(height=8, width=8).open(Path())
    whole = content(picture(20, 24), form)
    random = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 40))]
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(4):
            changed[random.integers(min(len(whole), 400))] = random.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for each in damaged:
        try:
            encoder.encode([each])
        except InputError:
            refused += 1
    assert refused > 10


def test_an_image_that_would_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    error = refusal(content(picture(40, 40)))
    assert error.what == "the image cannot be read"
    assert "DecompressionBombError" in str(error.given)


def test_an_image_that_would_fill_the_memory_when_it_is_resized() -> None:
    error = refusal(Image.new("L", (1, 60_000)), shortest_edge=256)
    assert error.what == "the image is too long and thin to be resized"
    assert error.given == "1 x 60000 pixels, resized 256 x 15360000"
    assert error.fix == "crop it to the part that matters"


def test_colours_that_pillow_does_not_convert() -> None:
    value = content(Image.new("LAB", (8, 8)), "TIFF")
    error = refusal(value, channels=1, mean=(0.5,), std=(0.5,))
    assert error.what == "the image cannot be read"
    assert "conversion from LAB" in str(error.given)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_an_unknown_range(mode: str) -> None:
    error = refusal(content(picture(8, 8).convert("L").convert(mode), "TIFF"))
    assert error.what == "the values of black and white in the image are unknown"
    assert error.given == f"mode {mode}, 32 bits a pixel"
    assert error.fix == "save it with 8 or 16 bits"


@pytest.mark.parametrize(
    "single", ["a.png", Path("a.png"), b"PNG", picture(2, 2), np.zeros((2, 2))]
)
def test_a_single_image_instead_of_a_list(single: Any) -> None:
    with pytest.raises(InputError, match="the predictor takes a list of images") as caught:
        ImagePreprocessing(height=8, width=8).open(Path()).encode(single)
    assert caught.value.fix == "put a single image into a list"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean\n  .*2 numbers for 3 channels"),
        ({"channels": 1, "std": (1, 1, 1)}, "std\n  .*3 numbers for 1 channels"),
        ({"std": (1.0, 0.0, 1.0)}, "std is 0"),
        ({"resized": (9, 9), "shortest_edge": 9}, "without shortest_edge"),
        ({"resized": (0, 9)}, "a height and a width"),
        ({"height": 0}, "greater than or equal to 1"),
        ({"resample": "cubic"}, "'bicubic'"),
        ({"tokenizer": "x"}, "Extra inputs"),
    ],
)
def test_settings_that_do_not_hold(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImagePreprocessing(**{"height": 8, "width": 8, **settings})


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingLibraryError, match="pillow") as caught:
        ImagePreprocessing(height=8, width=8).open(Path())
    assert caught.value.exit_code == 7
    assert "compressor[image]" in str(caught.value.fix)


# Packs


def pack_of(count: int, **settings: Any) -> EvaluationPack:
    preprocessing = ImagePreprocessing(**{"height": 6, "width": 5, **NORMALIZED, **settings})
    images = [picture(20 + each, 30, seed=each) for each in range(count)]
    rows = preprocessing.open(Path()).encode(images).rows
    return EvaluationPack.from_rows(rows, list(range(count)), preprocessing=preprocessing)


def test_a_pack_holds_images_side_by_side_as_bytes() -> None:
    pack = pack_of(7)
    assert len(pack) == 7
    assert pack.inputs[PIXELS].shape == (7, 6, 5, 3)
    assert pack.inputs[PIXELS].dtype == np.uint8
    assert pack.lengths.tolist() == [0] * 7


@pytest.mark.parametrize("batch_size", [1, 3, 7, 50])
def test_outputs_come_back_in_the_order_of_the_images(batch_size: int) -> None:
    pack = pack_of(7)
    wanted = signature(pack.preprocessing)
    answers = []
    for batch in pack.batches(batch_size, wanted):
        wanted.check(batch.feeds)
        pixels = batch.feeds[PIXELS]
        answers.append((batch, {"logits": pixels.mean(axis=(1, 2, 3))[:, None], "map": pixels}))
    assert sorted(index for batch, _ in answers for index in batch.indices) == list(range(7))
    restored = pack.restore(answers, wanted)
    expected = pack.preprocessing.batch(list(pack.inputs[PIXELS]))
    np.testing.assert_array_equal(restored["map"], expected)
    np.testing.assert_array_equal(restored["logits"][:, 0], expected.mean(axis=(1, 2, 3)))


def test_a_pack_of_images_survives_its_file(tmp_path: Path) -> None:
    pack = pack_of(4, shortest_edge=9)
    pack.save(tmp_path / "pack.safetensors")
    loaded = EvaluationPack.load(tmp_path / "pack.safetensors")
    assert loaded.preprocessing == pack.preprocessing
    np.testing.assert_array_equal(loaded.inputs[PIXELS], pack.inputs[PIXELS])
    assert loaded.inputs[PIXELS].dtype == np.uint8
    assert (loaded.lengths.tolist(), loaded.labels.tolist()) == ([0] * 4, [0, 1, 2, 3])
    assert [path.name for path in tmp_path.iterdir()] == ["pack.safetensors"]


def test_the_first_images_of_a_pack() -> None:
    pack = pack_of(5)
    head = pack.head(2)
    np.testing.assert_array_equal(head.inputs[PIXELS], pack.inputs[PIXELS][:2])
    assert head.labels.tolist() == [0, 1]
    assert len(pack.head(99)) == 5


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ({"other": [np.zeros((6, 5, 3), np.uint8)]}, [0], "pack of images needs 'pixel_values'"),
        ({PIXELS: []}, [], "needs at least one image"),
        ({PIXELS: [np.zeros((6, 5, 3), np.uint8)]}, [0, 1], "labels do not fit the samples"),
    ],
)
def test_a_pack_that_does_not_fit_together(rows: Any, labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvaluationPack.from_rows(rows, labels, preprocessing=ImagePreprocessing(height=6, width=5))


def test_an_input_that_images_do_not_provide() -> None:
    pack = pack_of(1)
    with pytest.raises(InputError, match="takes an input 'input_ids', which image does not"):
        next(pack.batches(1, signature(pack.preprocessing, "input_ids")))


# Synthetic batches


def test_a_synthetic_batch_is_of_the_size_that_the_model_reads() -> None:
    preprocessing = ImagePreprocessing(height=6, width=5, **NORMALIZED)
    wanted = signature(preprocessing)
    batches = [
        synthetic_feeds(wanted, FeedsSpec(lengths=(0,) * 4, preprocessing=preprocessing, seed=seed))
        for seed in (0, 0, 1)
    ]
    wanted.check(batches[0])
    assert batches[0][PIXELS].shape == (4, 3, 6, 5)
    np.testing.assert_array_equal(batches[0][PIXELS], batches[1][PIXELS])
    assert (batches[0][PIXELS] != batches[2][PIXELS]).any()
    bright = (np.asarray(1.0) - MEAN) / STD
    dark = (np.asarray(0.0) - MEAN) / STD
    lows, highs = (each(batches[0][PIXELS], axis=(0, 2, 3)) for each in (np.min, np.max))
    assert (lows >= dark - 1e-5).all()
    assert (highs <= bright + 1e-5).all()


@pytest.fixture
def bundle_with(make_bundle: Callable[..., Path]) -> Callable[[Any], Bundle]:
    """Makes a bundle whose manifest has another preprocessing."""
    bundle = Bundle.open(make_bundle())

    def make(preprocessing: Any) -> Bundle:
        update = {"preprocessing": preprocessing}
        return Bundle(bundle.folder, bundle.manifest.model_copy(update=update))

    return make


def test_lengths_count_for_bundles_that_read_texts_only(
    bundle_with: Callable[[Any], Bundle],
) -> None:
    images = bundle_with(ImagePreprocessing(height=6, width=5))
    texts = bundle_with(TextPreprocessing(max_length=100, pad_token_id=0))
    short = bundle_with(TextPreprocessing(max_length=12, pad_token_id=0))
    assert usual_length([images]) == usual_length([images], 0) == 0
    with pytest.raises(InputError, match="images all have the size that the model takes") as caught:
        usual_length([images], 512)
    assert (caught.value.given, caught.value.fix) == ("512", "leave the length out")
    assert usual_length([texts]) == usual_length([images, texts]) == 100
    assert usual_length([texts, images, short]) == 12
    assert usual_length([texts, images], 64) == 64
    with pytest.raises(InputError, match="the model takes no text of this length") as caught:
        usual_length([texts, images, short], 64)
    assert (caught.value.given, caught.value.fix) == ("64 tokens", "use at most 12")


def test_the_shape_of_a_batch_for_a_bundle_of_images(bundle_with: Callable[[Any], Bundle]) -> None:
    bundle = bundle_with(ImagePreprocessing(height=6, width=5))
    assert num_token_ids(bundle) == 1
    assert FeedsSpec.of(bundle, 3, 128, num_ids=1).lengths == (0, 0, 0)


def test_a_manifest_says_how_images_are_read() -> None:
    wanted = ImagePreprocessing(height=6, width=5, resized=(9, 9), resample="box", channels=1)
    written = json.loads(wanted.model_dump_json())
    assert written["kind"] == "image"
    assert TypeAdapter(AnyPreprocessing).validate_python(written) == wanted
    assert wanted.limit_note is None
