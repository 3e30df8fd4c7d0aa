import torch
from torch import nn

from compressor.training.checkpoints import claim, identity, last_checkpoint, seal


def write(folder, step, *, sealed=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    if sealed:
        seal(checkpoint)
    return checkpoint


def test_a_checkpoint_counts_once_it_is_sealed(tmp_path):
    assert last_checkpoint(tmp_path) is None
    write(tmp_path, 9)
    write(tmp_path, 10)
    write(tmp_path, 11, sealed=False)
    assert last_checkpoint(tmp_path).name == "checkpoint-10"


def test_a_truncated_checkpoint_does_not_count(tmp_path):
    write(tmp_path, 1)
    (write(tmp_path, 2) / "model.safetensors").write_bytes(b"wei")
    assert last_checkpoint(tmp_path).name == "checkpoint-1"


def test_claim_removes_what_is_partial_and_keeps_what_is_whole(tmp_path):
    claim(tmp_path, "a")
    write(tmp_path, 1)
    write(tmp_path, 2, sealed=False)
    claim(tmp_path, "a")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_claim_removes_the_checkpoints_of_another_training(tmp_path):
    claim(tmp_path, "a")
    write(tmp_path, 1)
    claim(tmp_path, "b")
    assert last_checkpoint(tmp_path) is None


def test_identity_depends_on_settings_and_weights():
    torch.manual_seed(0)
    module = nn.Linear(2, 2)
    first = identity(("settings",), (module,))
    assert identity(("settings",), (module,)) == first
    assert identity(("others",), (module,)) != first
    with torch.no_grad():
        module.bias[0] += 1
    assert identity(("settings",), (module,)) != first
