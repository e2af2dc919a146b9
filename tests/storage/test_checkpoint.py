"""Checkpoints are restored bit for bit, or refused."""

import json

import numpy as np
import pytest
import torch

from fedpgp.core.errors import RunError
from fedpgp.federation.state import State
from fedpgp.storage import checkpoint

STATE = State(
    round=7,
    shared={"ctx": torch.tensor([[0.1, -0.0], [torch.finfo().tiny, 3e38]]), "bias": torch.tensor(2.5)},
    personal={"v": torch.arange(12.0).reshape(3, 4).mT, "u": torch.ones(3, 2, dtype=torch.bfloat16)},
)


def test_a_state_is_restored_bit_for_bit_with_its_key_order(tmp_path):
    reference = json.loads(json.dumps(checkpoint.save(tmp_path, STATE, "digest")))
    state = checkpoint.load(tmp_path, reference, "digest")
    assert state.round == 7
    for tree, original in ((state.shared, STATE.shared), (state.personal, STATE.personal)):
        assert list(tree) == list(original)
        for key, value in tree.items():
            assert value.dtype == original[key].dtype
            assert torch.equal(value, original[key])
    assert torch.signbit(state.shared["ctx"][0, 1])


def test_numbers_that_numpy_lacks_are_refused_as_arrays(tmp_path):
    reference = checkpoint.save(tmp_path, STATE, "digest")
    with pytest.raises(RunError, match=r"000007\.safetensors: has numbers that NumPy lacks"):
        checkpoint.load(tmp_path, reference, "digest", arrays=True)


def test_a_state_without_parameters_is_saved_and_loaded(tmp_path):
    reference = checkpoint.save(tmp_path, State(0, {}, {}), "digest")
    assert checkpoint.load(tmp_path, reference, "digest") == State(0, {}, {})


def test_saving_again_replaces_the_file(tmp_path):
    checkpoint.save(tmp_path, State(7, {}, {}), "digest")
    reference = checkpoint.save(tmp_path, STATE, "digest")
    assert [path.name for path in tmp_path.iterdir()] == ["000007.safetensors"]
    assert (tmp_path / "000007.safetensors").stat().st_size == reference["files"][-1]["bytes"]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    reference = checkpoint.save(tmp_path, STATE, "aaaa")
    with pytest.raises(RunError, match=r"000007.safetensors: belongs to configuration aaaa, not bbbb"):
        checkpoint.load(tmp_path, reference, "bbbb")


def test_truncated_damaged_and_missing_checkpoints_are_refused(tmp_path):
    reference = checkpoint.save(tmp_path, STATE, "digest")
    path = tmp_path / reference["files"][0]["file"]
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(RunError, match=f"truncated checkpoint, {len(content) - 1} bytes instead of {len(content)}"):
        checkpoint.load(tmp_path, reference, "digest")

    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit of one value
    with pytest.raises(RunError, match="damaged checkpoint"):
        checkpoint.load(tmp_path, reference, "digest")

    path.unlink()
    with pytest.raises(RunError, match=r"cannot be read \(No such file"):
        checkpoint.load(tmp_path, reference, "digest")


def test_superfluous_lists_all_checkpoints_but_those_to_keep(tmp_path):
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, State(number, {}, {}), "digest")
    found = checkpoint.superfluous(tmp_path, {"000002.safetensors"})
    assert sorted(path.name for path in found) == ["000001.safetensors", "000003.safetensors"]


def advance(state, changed, value):
    """The next round: new shared parameters, and new personal ones for the clients `changed`."""
    personal = {key: tree.clone() for key, tree in state.personal.items()}
    for tree in personal.values():
        tree[torch.tensor(changed)] = value
    return State(state.round + 1, {key: torch.full_like(tree, value) for key, tree in state.shared.items()}, personal)


def equal(left, right):
    return left.round == right.round and all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        for mine, theirs in ((left.shared, right.shared), (left.personal, right.personal))
    )


def test_few_changed_clients_are_written_as_a_delta(tmp_path):
    state = State(1, {"ctx": torch.zeros(2)}, {"u": torch.zeros(9, 500), "v": torch.zeros(9, 1)})
    reference = checkpoint.save(tmp_path, state, "d")
    base = (tmp_path / "000001.safetensors").stat().st_size
    for changed in ([4], [0, 4], [8]):
        state = advance(state, changed, float(state.round))
        reference = json.loads(json.dumps(checkpoint.save(tmp_path, state, "d", np.array(changed), reference)))
        assert (tmp_path / f"{state.round:06d}.safetensors").stat().st_size < base / 3
        assert equal(checkpoint.load(tmp_path, reference, "d"), state)
        arrays = checkpoint.load(tmp_path, reference, "d", arrays=True)
        assert all(np.array_equal(arrays.personal[key], value) for key, value in state.personal.items())
    assert checkpoint.files_of(reference) == {f"00000{number}.safetensors" for number in (1, 2, 3, 4)}
    (tmp_path / "000003.safetensors").unlink()
    with pytest.raises(RunError, match=r"000003\.safetensors"):
        checkpoint.load(tmp_path, reference, "d")


def test_many_changed_clients_or_a_long_chain_make_a_new_base(tmp_path):
    state = State(0, {}, {"u": torch.zeros(9, 4)})
    reference = checkpoint.save(tmp_path, state, "d")
    lengths = []
    for changed in [[0]] * checkpoint.LONGEST_CHAIN + [[0, 1, 2, 3]] + [[0]]:
        state = advance(state, changed, float(state.round))
        reference = checkpoint.save(tmp_path, state, "d", np.array(changed), reference)
        lengths.append(len(reference["files"]))
        assert equal(checkpoint.load(tmp_path, reference, "d"), state)
        arrays = checkpoint.load(tmp_path, reference, "d", arrays=True)
        assert all(np.array_equal(arrays.personal[key], value) for key, value in state.personal.items())
    assert lengths == [*range(2, checkpoint.LONGEST_CHAIN + 1), 1, 1, 2]
