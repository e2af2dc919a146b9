"""Whole rounds on one weight with hand-worked numbers, client sampling, and validation of updates."""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from fedpgp.config import FederationSettings
from fedpgp.core.errors import ClientError
from fedpgp.federation.client import Update, validate
from fedpgp.federation.cohorts import participants, rounding, sample_clients
from fedpgp.federation.messages import Call


def test_all_shared(server):
    """Client steps of -0.5 gradient: a, b = 1, 2.5, -2 (means 2, 5, -4). Weights 2, 1, 3: (2 + 2.5 - 6) / 6 = -0.25."""
    result = next(server("ab").run(server("ab").initial_state()))
    assert result.state.shared["a"].item() == result.state.shared["b"].item() == -0.25
    assert result.state.personal == {}
    # The cut is at -0.5: every image is on its side of it.
    assert result.row.metrics["test/local"] == 100
    assert result.row.bytes_up == result.row.bytes_down == 3 * 2 * 4
    # Mean losses: (1 + 9) / 4 = 2.5, 12.5, 8.
    assert result.row.metrics["train/loss"] == pytest.approx((2.5 + 12.5 + 8) / 3)


def test_part_shared_over_two_rounds(server):
    """Round 1: a, b = 1, 2.5, -2; a is averaged to -0.25, b stays.

    Round 2: a + b = 0.75, 2.25, -2.25; gradients -1.25, -2.75, 1.75; a = 0.375, 1.125, -1.125,
    averaged (0.75 + 1.125 - 3.375) / 6 = -0.25; b = 1.625, 3.875, -2.875.
    """
    rounds = server("a").run(server("a").initial_state())
    first = next(rounds)
    assert first.state.shared["a"].item() == -0.25
    assert first.state.personal["b"].flatten().tolist() == [1.0, 2.5, -2.0]
    second = next(rounds)
    assert second.state.shared["a"].item() == pytest.approx(-0.25)
    assert second.state.personal["b"].flatten().tolist() == pytest.approx([1.625, 3.875, -2.875])
    # Cuts after round 2: 1.375, 3.625, -3.125. Of its own images x has 1 right of 2, y 1 of 1, z 3 of 3;
    # of all six x has 5 right, y 4, z 6.
    rows = second.clients.filter(pc.field("split") == "test")
    local, everything = (rows.filter(pc.field("metric") == metric) for metric in ("local", "all"))
    assert local["correct"].to_pylist() == [1, 1, 3]
    assert everything["correct"].to_pylist() == [5, 4, 6]
    assert second.row.metrics["test/local"] == pytest.approx((50 + 100 + 100) / 3)


@pytest.mark.parametrize("block_size", [1, 2, 10])
def test_every_part_of_the_loss_is_recorded_by_round_and_client(server, block_size):
    """Round 2 starts from the cuts 0.75, 2.25, -2.25, at losses (0.25^2 + 2.25^2) / 4, 2.75^2 / 2, 1.75^2 / 2."""
    rounds = list(server("a", block_size=block_size).run(server("a").initial_state()))
    train = rounds[1].clients.filter(pc.field("split") == "train")
    by_metric = {name: train.filter(pc.field("metric") == name) for name in ("cut", "square", "train")}
    assert sum(part.num_rows for part in by_metric.values()) == train.num_rows == 9
    losses = [(0.25**2 + 2.25**2) / 4, 2.75**2 / 2, 1.75**2 / 2]
    assert by_metric["cut"]["loss"].to_pylist() == [0.75, 2.25, -2.25]
    assert by_metric["square"]["loss"].to_pylist() == by_metric["train"]["loss"].to_pylist() == losses
    assert all(part["total"].to_pylist() == [2, 1, 3] for part in by_metric.values())
    assert train["correct"].null_count == train["domain"].null_count == train["event"].null_count == 9
    assert rounds[0].row.metrics["train/cut"] == 0
    metrics = rounds[1].row.metrics
    assert metrics["train/cut"] == 0.25
    assert metrics["train/loss"] == metrics["train/square"] == sum(losses) / 3


@pytest.mark.parametrize("block_size", [1, 2, 10])
def test_confusion_is_counted_after_the_last_round(server, block_size):
    """Cuts as above: at 1.375 the high 1 counts as low, at 3.625 the high 1 and 3, at -3.125 none."""
    first, last = server("a", block_size=block_size).run(server("a").initial_state())
    assert first.confusion is None
    low, high = 0, 1
    assert {tuple(row.values()) for row in last.confusion.to_pylist()} == {
        ("test", "local", high, low, 1), ("test", "local", high, high, 2), ("test", "local", low, low, 3),
        ("test", "all", high, low, 3), ("test", "all", high, high, 6), ("test", "all", low, low, 9),
    }  # fmt: skip


def test_a_model_without_finite_logits_has_no_right_answer(server):
    """A sum that is infinite or undefined: not one image of class 0, though argmax would say so."""
    federation = server("", rounds=1)
    start = federation.initial_state()
    start.personal["a"][:] = torch.tensor([[float("nan")], [float("inf")], [0.0]])
    counts, confusion = federation._evaluate(start, last=True)
    (everything,) = (part for part in counts if part.metric == "all")
    assert everything.correct.flatten().tolist() == [0, 0, 6]
    rows = confusion.filter(pc.field("metric") == "all").to_pylist()
    assert {tuple(row.values())[2:] for row in rows} == {(0, 0, 3), (1, 1, 3)}


def test_nothing_shared(server):
    (result,) = server("", rounds=1).run(server("", rounds=1).initial_state())
    assert result.state.shared == {}
    assert result.state.personal["a"].flatten().tolist() == [1.0, 2.5, -2.0]
    assert result.row.bytes_up == 0


def test_clients_that_were_not_sampled_keep_their_parameters(server):
    federation = server("a", participation=0.4, rounds=1)
    (result,) = federation.run(federation.initial_state())
    (trained,) = result.clients.filter(pc.field("metric") == "train")["client"].to_pylist()
    alone = [1.0, 2.5, -2.0][trained]
    assert result.state.shared["a"].item() == alone
    assert [b for client, b in enumerate(result.state.personal["b"].flatten().tolist()) if client != trained] == [
        0.0,
        0.0,
    ]
    assert result.row.participants == 1
    assert result.row.bytes_up == 4


@pytest.mark.parametrize("block_size", [1, 2])
def test_blocks_change_nothing(server, block_size):
    whole, cut = (list(server("a", block_size=size).run(server("a").initial_state())) for size in (10, block_size))
    for left, right in zip(whole, cut, strict=True):
        assert torch.equal(left.state.shared["a"], right.state.shared["a"])
        assert torch.equal(left.state.personal["b"], right.state.personal["b"])
        assert left.clients.equals(right.clients)


def test_evaluation_every_other_round_and_last(server):
    federation = server("a", rounds=5, eval_every=2)
    rows = [result.row for result in federation.run(federation.initial_state())]
    assert [row.round for row in rows if "evaluate" in row.seconds] == [2, 4, 5]
    assert [row.round for row in rows if "test/local" in row.metrics] == [2, 4, 5]


def test_before_aggregation_is_a_separate_metric(server):
    """Cuts 2, 5, -4 before averaging; a tie is read as low: right for 1 of x's images, none of y's, all of z's."""
    federation = server("ab", rounds=1, evaluate_before_aggregation=True)
    (result,) = federation.run(federation.initial_state())
    rows = result.clients.filter(pc.field("metric") == "local_before_aggregation")
    assert rows["correct"].to_pylist() == [1, 0, 3]
    assert rows["total"].to_pylist() == [2, 1, 3]
    assert result.row.metrics["test/local_before_aggregation"] == pytest.approx(50)
    assert result.row.metrics["test/local"] == 100


def test_a_method_without_phases_is_evaluated_once(server):
    federation = server("ab")
    federation.job.method.phases = ()
    federation.rounds = 0
    (result,) = federation.run(federation.initial_state())
    assert result.row.round == 0
    assert result.row.metrics["test/all"] == 100  # the cut is at 0
    assert "train/loss" not in result.row.metrics


def test_a_loss_that_is_not_finite_names_client_and_round(server):
    federation = server("a", images=[[1.0, 3.0], [1e30], [-4.0, -4.0, -4.0]], block_size=1)
    with pytest.raises(ClientError, match="client 1, round 1, local training: loss is inf"):
        next(federation.run(federation.initial_state()))


def one_bad(server, **changes):
    """Client y's only image is out of range."""
    federation = server("a", images=[[1.0, 3.0], [1e30], [-4.0, -4.0, -4.0]], rounds=1, **changes)
    (result,) = federation.run(federation.initial_state())
    train = result.clients.filter(pc.field("metric") == "train")
    return result, dict(zip(train["client"].to_pylist(), train["event"].to_pylist(), strict=True))


@pytest.mark.parametrize("block_size", [1, 3])
def test_a_bad_client_can_be_excluded(server, block_size):
    """a = (2 * 1 + 3 * -2) / 5 = -0.8 without y, which keeps its b."""
    result, events = one_bad(server, policy="exclude", block_size=block_size)
    assert result.state.shared["a"].item() == pytest.approx(-0.8)
    assert result.state.personal["b"].flatten().tolist() == [1.0, 0.0, -2.0]
    assert events == {0: None, 1: "excluded: loss is inf", 2: None}
    assert result.row.metrics["train/loss"] == pytest.approx((2.5 + 8) / 2)
    assert result.row.metrics["train/square"] == result.row.metrics["train/loss"]  # over the same clients
    parts = result.clients.filter(pc.field("metric") == "square")
    assert parts["event"].to_pylist() == [None] * 3


def test_excluded_clients_are_not_evaluated_before_aggregation(server):
    result, _ = one_bad(server, policy="exclude", evaluate_before_aggregation=True)
    tested = result.clients.filter(pc.field("metric") == "local_before_aggregation")
    assert tested["client"].to_pylist() == [0, 2]
    everyone, _ = one_bad(server, policy="exclude", evaluate_before_aggregation=True, max_update_norm=0.01)
    assert not everyone.clients.filter(pc.field("metric") == "local_before_aggregation").num_rows


def test_a_limit_above_all_updates_changes_no_bit():
    values = torch.tensor([[0.1], [0.3], [1e-8]])
    update = Update({"a": values}, torch.zeros(3), torch.ones(3, dtype=torch.bool))
    settings = FederationSettings(policy="clip", max_update_norm=1e9)
    valid = validate(update, {"a": torch.tensor([1e3 / 3])}, settings, Call(1, np.arange(3), {}))
    torch.testing.assert_close(valid.shared["a"], values, atol=0, rtol=0)
    assert valid.events == (None, None, None)


def test_a_long_update_can_be_excluded(server):
    """Updates 1, 2.5, -2 against a norm of 2.25: y is left out as above."""
    federation = server("a", rounds=1, policy="exclude", max_update_norm=2.25)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == pytest.approx(-0.8)


def test_a_long_update_can_be_clipped(server):
    """Updates 1, 2.5, -2 clipped to 1.5: (2 * 1 + 1.5 - 3 * 1.5) / 6 = -1/6; personal parts stay as trained."""
    federation = server("a", rounds=1, policy="clip", max_update_norm=1.5)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == pytest.approx(-1 / 6)
    assert result.state.personal["b"].flatten().tolist() == [1.0, 2.5, -2.0]
    events = result.clients.filter(pc.field("metric") == "train")["event"].to_pylist()
    assert events[1] == "clipped: update norm 2.5 above max_update_norm 1.5"
    assert result.row.bytes_up == 3 * 4


def test_a_long_update_fails_the_run_by_default(server):
    federation = server("a", max_update_norm=2.25)
    told = r"client 1, round 1, local training: update norm 2\.5 above .*give federation.policy=exclude"
    with pytest.raises(ClientError, match=told):
        next(federation.run(federation.initial_state()))


def test_if_everyone_is_excluded_the_shared_parameters_are_unchanged(server):
    federation = server("a", rounds=1, policy="exclude", max_update_norm=0.1)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == 0.0


@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_of_a_block_change_nothing(server, chunk_size):
    whole, cut = (list(server("a", chunk_size=size).run(server("a").initial_state())) for size in (None, chunk_size))
    assert torch.equal(whole[-1].state.shared["a"], cut[-1].state.shared["a"])
    assert whole[-1].clients.equals(cut[-1].clients)


def test_finetuning_before_evaluation_leaves_the_state_as_it_was(server):
    """After one round a = b = -0.25; one more epoch moves a + b by -(-0.5 - mean) to means 2, 5, -4.

    The cuts 2, 5, -4 of `test_before_aggregation_is_a_separate_metric` come out again: 1, 0 and 3 images are right.
    """
    federation = server("ab", rounds=1, finetune_epochs=1)
    (result,) = federation.run(federation.initial_state())
    assert result.state.shared["a"].item() == -0.25
    local = result.clients.filter(pc.field("metric") == "local")
    assert local["correct"].to_pylist() == [1, 0, 3]


def test_failed_finetuning_follows_the_policy(server):
    """Client y's image is out of range. With `exclude` its unchanged model, at the cut 0, is evaluated and is right."""
    images = [[1.0, 3.0], [1e30], [-4.0, -4.0, -4.0]]
    federation = server("ab", images=images, finetune_epochs=1)
    with pytest.raises(ClientError, match="client 1, round 0, fine-tuning: loss is inf; lower the learning rate"):
        federation._evaluate(federation.initial_state(), last=False)
    federation = server("ab", images=images, finetune_epochs=1, policy="exclude")
    counts, _ = federation._evaluate(federation.initial_state(), last=False)
    assert [part.correct.flatten().tolist() for part in counts if part.metric == "local"] == [[1, 1, 3]]


def test_the_sample_is_a_function_of_seed_and_round():
    some = FederationSettings(participation=0.25)
    draws = {round: sample_clients(1, round, 20, some).tolist() for round in range(1, 9)}
    assert draws == {round: sample_clients(1, round, 20, some).tolist() for round in reversed(range(1, 9))}
    assert all(len(set(sample)) == 5 and sample == sorted(sample) for sample in draws.values())
    assert len({tuple(sample) for sample in draws.values()}) > 1
    assert draws != {round: sample_clients(2, round, 20, some).tolist() for round in range(1, 9)}


def test_everyone_or_at_least_one_client_trains():
    assert sample_clients(1, 3, 7, FederationSettings()).tolist() == list(range(7))
    assert len(sample_clients(1, 3, 7, FederationSettings(participation=0.01))) == 1
    first = FederationSettings(participation=0.5, everyone_first=True)
    assert len(sample_clients(1, 1, 7, first)) == 7
    assert len(sample_clients(1, 2, 7, first)) == 3  # floor, as in the authors' code


@pytest.mark.parametrize(
    ("clients", "participation", "count", "line"),
    [
        (100, 0.1, 10, None),
        (7, 1.0, 7, None),
        (8, 0.25, 2, None),
        (10, 0.01, 1, "federation.participation=0.01: 1 client of 10 in a round, a fraction of 0.1"),
        (100, 0.29, 28, "federation.participation=0.29: 28 clients of 100 in a round, a fraction of 0.28"),
        (50, 0.58, 28, "federation.participation=0.58: 28 clients of 50 in a round, a fraction of 0.56"),
        (10, 0.25, 2, "federation.participation=0.25: 2 clients of 10 in a round, a fraction of 0.2"),
    ],
)
def test_participation_that_is_rounded_is_said(clients, participation, count, line):
    federation = FederationSettings(participation=participation)
    assert participants(clients, participation) == count == len(sample_clients(1, 2, clients, federation))
    assert rounding(clients, federation) == line
    assert rounding(clients, federation.model_copy(update={"sampling": "poisson"})) is None  # no number to name
