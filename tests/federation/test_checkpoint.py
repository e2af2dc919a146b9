"""Checkpoints come back bit for bit, or not at all."""

import json

import pytest
import torch

from fedpgp.errors import RunError
from fedpgp.federation import checkpoint
from fedpgp.federation.checkpoint import State

STATE = State(
    round=7,
    shared={"ctx": torch.tensor([[0.1, -0.0], [torch.finfo().tiny, 3e38]]), "bias": torch.tensor(2.5)},
    personal={"v": torch.arange(12.0).reshape(3, 4).mT, "u": torch.ones(3, 2, dtype=torch.bfloat16)},
)


def test_a_state_comes_back_bit_for_bit_and_in_its_own_order(tmp_path):
    reference = json.loads(json.dumps(checkpoint.save(tmp_path, STATE, "digest")))
    state = checkpoint.load(tmp_path, reference, "digest")
    assert state.round == 7
    for tree, original in ((state.shared, STATE.shared), (state.personal, STATE.personal)):
        assert list(tree) == list(original)
        for key, value in tree.items():
            assert value.dtype == original[key].dtype
            assert torch.equal(value, original[key])
    assert torch.signbit(state.shared["ctx"][0, 1])


def test_a_method_without_parameters_has_a_checkpoint_too(tmp_path):
    reference = checkpoint.save(tmp_path, State(0, {}, {}), "digest")
    assert checkpoint.load(tmp_path, reference, "digest") == State(0, {}, {})


def test_saving_again_replaces_the_file_and_leaves_nothing_else(tmp_path):
    checkpoint.save(tmp_path, State(7, {}, {}), "digest")
    reference = checkpoint.save(tmp_path, STATE, "digest")
    assert [path.name for path in tmp_path.iterdir()] == ["000007.safetensors"]
    assert (tmp_path / "000007.safetensors").stat().st_size == reference["bytes"]


def test_a_foreign_checkpoint_is_refused_naming_both_sides(tmp_path):
    reference = checkpoint.save(tmp_path, STATE, "aaaa")
    with pytest.raises(RunError, match=r"000007.safetensors: belongs to configuration aaaa, not to bbbb"):
        checkpoint.load(tmp_path, reference, "bbbb")


def test_a_torn_a_damaged_and_a_missing_checkpoint_are_refused(tmp_path):
    reference = checkpoint.save(tmp_path, STATE, "digest")
    path = tmp_path / reference["file"]
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match=f"torn checkpoint, {len(content) - 1} bytes instead of {len(content)}"):
        checkpoint.load(tmp_path, reference, "digest")

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit of one value
    with pytest.raises(RunError, match="damaged checkpoint"):
        checkpoint.load(tmp_path, reference, "digest")

    path.unlink()
    with pytest.raises(RunError, match=r"cannot be read \(No such file"):
        checkpoint.load(tmp_path, reference, "digest")


def test_prune_keeps_what_it_is_told_to_keep(tmp_path):
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, State(number, {}, {}), "digest")
    checkpoint.prune(tmp_path, {"000002.safetensors"})
    assert [path.name for path in tmp_path.iterdir()] == ["000002.safetensors"]
