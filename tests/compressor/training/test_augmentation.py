import numpy as np
import pytest

from compressor.training.augmentation import TokenNoise

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
    slots = list(made.variants(ROWS))
    for epoch in range(8):
        for index, row in enumerate(ROWS):
            seen = made(row, index, epoch)
            assert slots[seen["slot"]] == seen


def test_no_share_leaves_rows_alone():
    made = noise(share=0.0)
    assert made(ROWS[0], 0, 1) == {**ROWS[0], "noisy": 0, "slot": 0}
    assert len(made.variants(ROWS)) == len(ROWS)
