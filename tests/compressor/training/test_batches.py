import numpy as np
import torch

from compressor.training.batches import EncodedRows, LengthBucketSampler, collator, encode

LENGTHS = np.random.default_rng(0).integers(2, 40, 1003).tolist()


def order(epoch: int, *, seed: int = 0) -> list[int]:
    sampler = LengthBucketSampler(LENGTHS, batch_size=10, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_has_each_row_once():
    assert sorted(ticket - 2 * 1003 for ticket in order(2)) == list(range(1003))


def test_order_depends_on_epoch_and_seed_only():
    assert order(1) == order(1)
    assert [ticket - 1003 for ticket in order(1)] != order(0)
    assert order(0, seed=1) != order(0)


def test_batches_need_little_padding():
    rows = [LENGTHS[ticket] for ticket in order(0)]
    batches = [rows[start : start + 10] for start in range(0, 1003, 10)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(LENGTHS)


def test_lengths_do_not_rise_through_an_epoch():
    rows = np.array([LENGTHS[ticket] for ticket in order(0)])
    assert abs(np.corrcoef(rows, np.arange(1003))[0, 1]) < 0.3


def test_fewer_rows_than_a_batch():
    assert sorted(LengthBucketSampler([3, 1, 2], batch_size=8, seed=0)) == [0, 1, 2]


def test_ticket_names_row_and_epoch():
    rows = EncodedRows(
        [{"input_ids": [1]}, {"input_ids": [2]}],
        [1, 1],
        lambda row, index, epoch: {**row, "index": index, "epoch": epoch},
    )
    assert rows[7] == {"input_ids": [2], "index": 1, "epoch": 3}


def test_collator_pads_inputs_and_stacks_the_rest(word_model, word_splits):
    model = word_model()
    rows = encode(model, word_splits.train)[:3]
    batch = collator(model)([{**row, "slot": 5} for row in rows])
    longest = max(len(row["input_ids"]) for row in rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, longest)
    assert batch["attention_mask"].sum(dim=1).tolist() == [len(row["input_ids"]) for row in rows]
    assert batch["labels"].tolist() == word_splits.train.labels[:3].tolist()
    assert torch.equal(batch["slot"], torch.full((3,), 5))
