import hashlib

import numpy as np
import pytest

from compressor.training.augmentation import ImageNoise, Noise, TokenNoise, nearest_tokens

ROWS = [{"input_ids": [2, *range(10, 110), 3]}, {"input_ids": [2, *range(200, 300), 3]}]


def noise(**settings):
    defaults = {"share": 0.3, "mixup": 0.0, "copies": 3, "special_ids": [2, 3], "seed": 0}
    return TokenNoise(ROWS, **{**defaults, **settings})


def test_every_second_row_is_noisy_and_they_take_turns():
    made = noise()
    flags = [[made(ROWS[row], row, epoch)["noisy"] for row in (0, 1)] for epoch in (0, 1)]
    assert flags == [[0, 1], [1, 0]]


def test_the_share_of_the_tokens_is_replaced_and_special_ones_are_not():
    ids = np.array([noise(seed=seed)(ROWS[0], 0, 1)["input_ids"] for seed in range(50)])
    changed = ids != np.array(ROWS[0]["input_ids"])
    assert changed[:, 1:-1].mean() == pytest.approx(0.3, abs=0.02)
    assert not changed[:, [0, -1]].any()


def test_replacements_come_from_the_training_data():
    pool = {*range(10, 110), *range(200, 300)}
    assert set(noise(share=0.9)(ROWS[0], 0, 1)["input_ids"][1:-1]) <= pool


def test_a_mixed_row_begins_or_ends_as_another_and_keeps_its_length():
    ends = set()
    for seed in range(60):
        ids = noise(mixup=1.0, seed=seed)(ROWS[0], 0, 1)["input_ids"]
        assert (len(ids), ids[0], ids[-1]) == (102, 2, 3)
        foreign = [token for token in ids if token >= 200]
        if not foreign:
            continue  # the other row was the same one
        start = ids.index(foreign[0])
        after = start + len(foreign)
        assert ids[start:after] == list(range(foreign[0], foreign[0] + len(foreign)))
        assert ids[:start] == ROWS[0]["input_ids"][:start]
        assert ids[after:] == ROWS[0]["input_ids"][after:]
        ends.add("beginning" if start == 1 else "end")
    assert ends == {"beginning", "end"}


def test_the_share_of_the_rows_is_mixed():
    made = [noise(mixup=0.5, share=0.99, seed=seed)(ROWS[0], 0, 1) for seed in range(200)]
    # Where all but every token is replaced, hardly one is in its place; a mixed row has a run.
    kept = [np.mean(np.equal(row["input_ids"], ROWS[0]["input_ids"])[1:-1]) for row in made]
    assert np.mean(np.array(kept) > 0.1) == pytest.approx(0.5, abs=0.15)


UNCUT = {0: [2, *range(10, 310), 3]}


def stretches(windows, **settings):
    for seed in range(100):
        made = noise(windows=windows, uncut=UNCUT, share=0.99, seed=seed, **settings)
        yield made(ROWS[0], 0, 1)["input_ids"]


def test_a_cut_text_is_read_from_elsewhere_as_it_stands():
    starts = set()
    for ids in stretches(1.0, mixup=0.5):
        assert (len(ids), ids[0], ids[-1]) == (102, 2, 3)
        assert np.diff(ids[1:-1]).tolist() == [1] * 99
        starts.add(ids[1])
    assert min(starts) < 30
    assert max(starts) > 190
    assert starts <= set(range(10, 211))


def test_the_share_of_the_rows_of_a_cut_text_is_read_from_elsewhere():
    runs = [np.diff(ids[1:-1]).tolist() == [1] * 99 for ids in stretches(0.5)]
    assert np.mean(runs) == pytest.approx(0.5, abs=0.15)


def test_a_stretch_has_its_unknown_tokens():
    whole = [2, 10, 1, 11, 12, 13, 1, 14, 15, 3]
    row = {"input_ids": [2, 10, 1, 11, 3]}
    for seed in range(20):
        made = TokenNoise(
            [row], share=0.3, mixup=0.0, windows=1.0, uncut={0: whole}, copies=None,
            special_ids=[1, 2, 3], unknown_id=1, seed=seed,
        )  # fmt: skip
        ids = made(row, 0, 1)["input_ids"]
        assert any(whole[place : place + 3] == ids[1:-1] for place in range(1, 7))
        assert (ids[0], ids[-1]) == (2, 3)


def test_a_text_that_was_not_cut_has_no_other_stretch():
    plain = noise()(ROWS[1], 1, 0)
    assert noise(windows=1.0, uncut=UNCUT)(ROWS[1], 1, 0) == plain


def test_a_row_of_one_token_or_of_special_ones_alone_is_no_trouble():
    rows = [{"input_ids": [2, 9, 3]}, {"input_ids": [2, 3]}]
    made = TokenNoise(rows, share=0.5, mixup=1.0, copies=None, special_ids=[2, 3], seed=0)
    assert made(rows[0], 0, 1)["input_ids"] == [2, 9, 3]
    assert made(rows[1], 1, 0)["input_ids"] == [2, 3]


def test_noise_is_a_function_of_its_arguments():
    assert noise()(ROWS[0], 0, 5) == noise()(ROWS[0], 0, 5)
    assert noise(seed=1)(ROWS[0], 0, 5) != noise()(ROWS[0], 0, 5)


def test_copies_come_round_again():
    made = noise(copies=2)
    versions = [tuple(made(ROWS[0], 0, epoch)["input_ids"]) for epoch in (1, 3, 5, 7)]
    assert versions[0] == versions[2] != versions[1] == versions[3]


def test_without_a_number_of_copies_each_is_new():
    made = noise(copies=None)
    versions = {tuple(made(ROWS[0], 0, epoch)["input_ids"]) for epoch in range(1, 20, 2)}
    assert len(versions) == 10


def test_variants_lie_in_the_slots_that_rows_name():
    made = noise()
    slots = made.variants(ROWS)
    assert len(slots) == len(list(slots)) == 8
    for epoch in range(8):
        for index, row in enumerate(ROWS):
            seen = made(row, index, epoch)
            assert slots[seen["slot"]] == seen


def test_no_share_leaves_rows_alone():
    made = noise(share=0.0)
    assert made(ROWS[0], 0, 1) == {**ROWS[0], "noisy": 0, "slot": 0}
    assert list(made.variants(ROWS)) == [made(row, index, 0) for index, row in enumerate(ROWS)]


def test_the_rows_of_a_seed_stay_the_same():
    found = [noise(mixup=0.5, seed=7)(ROWS[0], 0, epoch)["input_ids"] for epoch in (1, 3, 5)]
    digest = hashlib.sha256(np.array(found, np.int64).tobytes()).hexdigest()
    assert digest == "3c25268f8271d6c94247e59a0f9cb202315b31c067737d93008b4ab7a25b6380"


def test_noise_of_no_kind_changes_nothing():
    assert Noise()(ROWS[1], 1, 1) == {**ROWS[1], "noisy": 0, "slot": 1}
    assert Noise(copies=5).variants(ROWS)[1] == {**ROWS[1], "noisy": 0, "slot": 1}


# Images


def pictures(count=6, shape=(12, 10, 3)):
    generator = np.random.default_rng(0)
    return [{"pixel_values": generator.integers(0, 256, shape, np.uint8)} for _ in range(count)]


def image_noise(rows, **settings):
    defaults = {"share": 0.25, "mixup": 0.0, "copies": 3, "seed": 0}
    return ImageNoise(rows, **{**defaults, **settings})


def pixels(row):
    return row["pixel_values"]


@pytest.mark.parametrize("mixup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(12, 10, 3), (9, 9, 1), (1, 1, 3), (2, 30, 3)])
def test_noisy_images_keep_their_shape_and_type_and_the_rows_stay(mixup, shape):
    rows = pictures(shape=shape)
    before = [pixels(row).copy() for row in rows]
    made = image_noise(rows, mixup=mixup, share=0.9)
    for epoch in range(6):
        for index, row in enumerate(rows):
            found = made(row, index, epoch)
            assert pixels(found).shape == shape
            assert pixels(found).dtype == np.uint8
            assert pixels(found).flags.c_contiguous
    assert all(np.array_equal(pixels(row), each) for row, each in zip(rows, before, strict=True))


def test_image_noise_is_a_function_of_row_index_and_epoch():
    rows = pictures()
    first, second, other = image_noise(rows), image_noise(rows), image_noise(rows, seed=1)
    calls = [(index, epoch) for epoch in (1, 3, 2, 1) for index in range(6)]
    for index, epoch in calls:
        ours, theirs = (each(rows[index], index, epoch) for each in (first, second))
        assert np.array_equal(pixels(ours), pixels(theirs))
        assert (ours["noisy"], ours["slot"]) == (theirs["noisy"], theirs["slot"])
    noisy = [(index, epoch) for index, epoch in calls if (index + epoch) % 2]
    assert any(
        not np.array_equal(pixels(first(rows[i], i, e)), pixels(other(rows[i], i, e)))
        for i, e in noisy
    )


def test_images_lie_in_the_slots_that_rows_name():
    rows = pictures()
    made = image_noise(rows, mixup=0.5)
    slots = made.variants(rows)
    assert len(slots) == 24
    for epoch in range(8):
        for index, row in enumerate(rows):
            seen = made(row, index, epoch)
            assert np.array_equal(pixels(slots[seen["slot"]]), pixels(seen))
            assert slots[seen["slot"]]["noisy"] == seen["noisy"]


def test_without_a_share_images_stay_as_they_are():
    rows = pictures()
    made = image_noise(rows, share=0.0, mixup=1.0)
    for epoch in range(4):
        for index, row in enumerate(rows):
            found = made(row, index, epoch)
            assert found["pixel_values"] is row["pixel_values"]
            assert (found["noisy"], found["slot"]) == (0, index)
    assert len(made.variants(rows)) == 6


def test_an_image_is_moved_by_at_most_the_share_and_mirrored_half_of_the_time():
    down, right = np.mgrid[:20, :40]
    rows = [{"pixel_values": np.stack([down, right, right], axis=-1).astype(np.uint8)}]
    moves, mirrored = set(), 0
    for seed in range(200):
        found = pixels(image_noise(rows, share=0.1, seed=seed)(rows[0], 0, 1)).astype(int)
        is_mirrored = found[10, 18, 1] > found[10, 22, 1]
        mirrored += is_mirrored
        if is_mirrored:
            found = found[:, ::-1]
        moves.add((found[10, 20, 0] - 10, found[10, 20, 1] - 20))
    assert {vertical for vertical, _ in moves} == {-2, -1, 0, 1, 2}
    assert {horizontal for _, horizontal in moves} == {*range(-4, 5)}
    assert mirrored / 200 == pytest.approx(0.5, abs=0.1)


def test_a_blended_image_lies_between_two_images():
    shape = (12, 10, 3)
    rows = [{"pixel_values": np.full(shape, shade, np.uint8)} for shade in (0, 200)]
    shades = set()
    for seed in range(40):
        found = pixels(image_noise(rows, mixup=1.0, seed=seed)(rows[0], 0, 1))
        assert len(np.unique(found)) == 1
        shades.add(int(found[0, 0, 0]))
    assert 0 in shades  # blended with itself
    assert len(shades) > 10
    assert max(shades) <= 200


def test_rows_beyond_those_of_the_noise_stay_clean_and_slots_stay_dense():
    more = [*ROWS, {"input_ids": [2, 400, 401, 3]}, {"input_ids": [2, 500, 3]}]
    made = noise(copies=2)
    assert made.num_forms(4).tolist() == [3, 3, 1, 1]
    variants = made.variants(more)
    assert len(variants) == 8
    assert [row["slot"] for row in variants] == list(range(8))
    assert [row["noisy"] for row in variants] == [0, 1, 1, 0, 1, 1, 0, 0]
    assert [row["input_ids"] for row in variants][6:] == [row["input_ids"] for row in more[2:]]
    for epoch in range(6):
        for index, row in enumerate(more):
            seen = made(row, index, epoch)
            assert variants[seen["slot"]] == seen
            assert index < 2 or (seen["noisy"] == 0 and seen["input_ids"] == row["input_ids"])


def test_neighbours_have_the_smallest_angles_and_are_of_the_texts():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(400, 16)).astype(np.float32)
    table[50] = 7 * table[60]  # the same direction
    found = nearest_tokens(table, ROWS, 3, special_ids=[2, 3])
    tokens = sorted({token for row in ROWS for token in row["input_ids"]} - {2, 3})
    assert found.shape == (400, 3)
    assert found[50, 0] == 60
    for token in (10, 17, 299):
        cosine = {
            other: float(table[token] @ table[other] / np.linalg.norm(table[other]))
            for other in tokens
            if other != token
        }
        assert found[token].tolist() == sorted(cosine, key=cosine.__getitem__, reverse=True)[:3]
    assert found[350].tolist() == [350] * 3  # no text has it
    assert found[2].tolist() == [2] * 3  # nor is it a word


def test_of_few_tokens_some_stand_for_themselves():
    table = np.eye(4, dtype=np.float32)
    found = nearest_tokens(table, [{"input_ids": [1, 3, 0]}], 2, special_ids=[0])
    assert found.tolist() == [[0, 0], [3, 1], [2, 2], [1, 3]]


def test_tokens_are_replaced_by_their_neighbours():
    nearest = np.arange(400)[:, None] + [[1000, 2000]]
    made = [noise(nearest=nearest, seed=seed)(ROWS[0], 0, 1)["input_ids"] for seed in range(20)]
    changes = np.array(made) - np.array(ROWS[0]["input_ids"])
    assert set(np.unique(changes)) == {0, 1000, 2000}
    assert (changes[:, 1:-1] != 0).mean() == pytest.approx(0.3, abs=0.03)
    assert not changes[:, [0, -1]].any()


def test_what_replaces_tokens_is_part_of_what_the_rows_are_made_of():
    """Another student has other neighbours, and its teacher other rows to label."""
    nearest = np.zeros((400, 2), np.int64)
    assert noise().beyond == []
    [found] = noise(nearest=nearest).beyond
    assert found is nearest
