"""Properties of every server rule: one backend or the other, blocks, resuming, learning rate, bytes."""

from __future__ import annotations

import os

import one_weight as problem
import pytest
import ray
import torch
from one_weight import one_weight
from rounds import check_same_bits, run

from fedpgp import server_rules
from fedpgp.config import ResourceSettings
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server
from fedpgp.server_rules.base import ClientHalf
from fedpgp.storage import checkpoint

ray.cloudpickle.register_pickle_by_value(problem)

RULES = server_rules.REGISTRY.built_in
SETTINGS = {
    "fedavgm": {"momentum": 0.5}, "fedadam": {"lr": 0.1, "tau": 0.1}, "fedyogi": {"lr": 0.1}, "fedadagrad": {"lr": 0.1},
    "trimmed_mean": {"trim": 0.2}, "multi_krum": {"m": 2}, "geometric_median": {"iterations": 2},
}  # fmt: skip
FIVE = [[2.0, 1.0], [4.0], [10.0, 8.0, 9.0], [-9.0], [100.0, 50.0]]
EVERY_RULE = pytest.mark.parametrize("name", RULES)


def make(folder, name, shared="a", images=FIVE, rounds=3, **changes):
    lr = {"lr": changes.pop("server_lr")} if "server_lr" in changes else {}
    rule = {"name": name, **SETTINGS.get(name, {}), **lr}
    return one_weight(folder, shared, images, rule=rule, rounds=rounds, batch_size=1, momentum=0.5, **changes)


@pytest.fixture(scope="module")
def pool(ray_cluster):
    pool = ActorPool(ResourceSettings(actors=2))
    yield pool
    pool.close()


@EVERY_RULE
def test_actors_give_the_bits_of_one_process(tmp_path, pool, name):
    job = make(tmp_path, name, block_size=2)
    serial, parallel = run(job), run(job, backend=pool)
    check_same_bits(serial[-1].state, parallel[-1].state)
    assert serial[-1].state.shared["a"].item() != 0
    assert all(left.clients.equals(right.clients) for left, right in zip(serial, parallel, strict=True))


@EVERY_RULE
@pytest.mark.parametrize("block_size", [1, 2])
def test_blocks_change_no_bit(tmp_path, name, block_size):
    check_same_bits(run(make(tmp_path, name))[-1].state, run(make(tmp_path, name, block_size=block_size))[-1].state)


@EVERY_RULE
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(tmp_path, name):
    """A third of the clients take part in a round, so checkpoints are deltas, and entries of the others are older."""
    fifteen = [[float(client**2 % 11)] for client in range(15)]
    settings = {"images": fifteen, "participation": 1 / 3, "rounds": 6}
    whole = run(make(tmp_path, name, **settings))[-1].state
    backend = SerialBackend(threads=1)
    backend.load(job := make(tmp_path, name, **settings))
    server = Server(job, backend)
    state, reference = server.initial_state(), None
    for _ in range(3):
        result = server.step(state)
        state = result.state
        reference = checkpoint.save(tmp_path, state, "digest", result.changed, reference)
    backend.close()
    loaded = checkpoint.load(tmp_path, reference, "digest")
    check_same_bits(state, loaded)
    assert len(reference["files"]) == 3
    check_same_bits(run(make(tmp_path, name, **settings), loaded)[-1].state, whole)


@EVERY_RULE
def test_half_the_learning_rate_is_half_the_step(tmp_path, name):
    """All start from 0."""
    whole = RULES[name].settings_type(**SETTINGS.get(name, {})).lr
    full, half = (
        run(make(tmp_path, name, rounds=1, server_lr=lr))[0].state.shared["a"].item() for lr in (whole, whole / 2)
    )
    assert full != 0
    assert half == pytest.approx(full / 2, rel=1e-6)


@EVERY_RULE
def test_bytes_are_those_that_are_sent(tmp_path, name):
    """Five clients with one shared float; SCAFFOLD sends a control variate with it, each way."""
    twice = 2 if isinstance(server_rules.create(name, {}), ClientHalf) else 1
    results = run(make(tmp_path, name, rounds=2))
    assert {(one.row.bytes_up, one.row.bytes_down) for one in results} == {(5 * 4 * twice, 5 * 4 * twice)}
    assert list(results[-1].state.shared) == ["a"]


@EVERY_RULE
def test_a_method_that_shares_nothing_has_the_same_results(tmp_path, name):
    plain, own = run(make(tmp_path, "fedavg", shared=""))[-1], run(make(tmp_path, name, shared=""))[-1]
    assert torch.equal(plain.state.personal["a"], own.state.personal["a"])
    assert own.row.bytes_up == own.row.bytes_down == 0


@EVERY_RULE
def test_aggregating_changes_none_of_its_arguments_and_keeps_dtypes(name):
    shared = {"x": torch.randn(3, 2), "y": torch.zeros((), dtype=torch.float32)}
    server_rules.plugin_check.dry_run(name, server_rules.create(name, SETTINGS.get(name, {})), shared)


def test_all_rules_have_what_the_table_shows():
    assert set(SETTINGS) <= set(RULES)
    assert all(rule.paper and rule.name == name for name, rule in RULES.items())


PLUGIN = """
import torch
from fedpgp.server_rules.base import BaseRule


class Largest(BaseRule):
    '''The largest of each value.'''

    name, paper, uploads = "largest", "none", "stack"

    def aggregate(self, server, shared, received):
        return server, self.step(shared, {key: value.amax(0) for key, value in received.stack.items()})
"""


def test_a_rule_in_a_file_runs_here_and_on_actors(tmp_path, monkeypatch, ray_cluster):
    """Rounds of one step from 0: the largest of half the clients' means, of 100 and 50."""
    (tmp_path / "largest_rule.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    job = make(tmp_path, "largest_rule:Largest", shared="a", rounds=1)
    monkeypatch.chdir(os.path.dirname(__file__))
    pool = ActorPool(ResourceSettings(actors=1))
    parallel = run(job, backend=pool)[-1].state
    pool.close()
    check_same_bits(run(job)[-1].state, parallel)
    assert parallel.shared["a"].item() > 20


def test_attackers_do_not_spoil_their_own_control_variates(tmp_path):
    """Client 0 flips its sign; its c_i stays the gradient that it has seen, so that no value grows over the rounds."""
    attack = {"kind": "sign_flip", "fraction": 0.2, "scale": 4.0}
    results = run(
        make(tmp_path, "scaffold", images=[[float(client)] for client in range(5)], rounds=40, lr=0.05, attack=attack)
    )
    (attacker,) = {row["client"] for row in results[-1].clients.to_pylist() if "attack" in (row["event"] or "")}
    state = results[-1].state
    assert state.kept["control.a"].abs().max() < 20
    assert state.shared["a"].abs().max() < 20
    assert state.kept["control.a"][attacker].item() != 0


def test_a_clipped_update_limits_what_is_sent_with_it(tmp_path):
    """Moves of at most 1 in `steps` of 0.5 and momentum 0.5: a control variate changes by at most 1 / travel."""
    settings = {"policy": "clip", "max_update_norm": 1.0, "rounds": 1, "lr": 0.5}
    state = run(make(tmp_path, "scaffold", images=[[1000.0]] * 5, **settings))[-1].state
    assert state.shared["a"].item() == pytest.approx(1.0)
    assert state.server["control.a"].item() == pytest.approx(-1 / 0.5)
    assert state.kept["control.a"].flatten().tolist() == pytest.approx([-1 / 0.5] * 5)
