"""Rounds of every method on a tiny model: figures, and operations that are known or counted in another way."""

from __future__ import annotations

import json

import pytest
import torch

from fedpgp import methods
from fedpgp.bench import methods as bench
from fedpgp.bench.measurement import counted
from fedpgp.bench.workload import BASE, TEMPLATE, one_batch
from fedpgp.clip.text_backbone import freeze
from fedpgp.core import memory
from fedpgp.core.tree import select, stack
from fedpgp.methods.promptfl import PromptFL

CLIENTS, CLASSES, IMAGES, STEPS = 2, 3, 2, 2
FIT = {"fedmaple": {"depth": 2}}
"""Settings that the two layers of the tiny model need."""


@pytest.fixture(scope="module")
def setting(workload):
    return bench.Setting(workload.backbone, CLIENTS, CLASSES, IMAGES, STEPS, threads=1)


def figures(setting, **chosen):
    return bench.measure(chosen, setting, lambda text: None).figures


def of_a_step(method, setting):
    """Operations of loss and gradients of a step of all clients on random features."""
    frozen = freeze(setting.backbone, BASE[:CLASSES], TEMPLATE, method.extra_texts).on(range(CLASSES))
    params = stack(method.init(frozen, torch.Generator().manual_seed(1)), CLIENTS)
    received = {key: value[0] for key, value in select(params, method.shared_keys).items()}
    learned = [params[key].requires_grad_() for phase in method.phases for key in phase.keys]
    images = one_batch(torch.randn(CLIENTS, IMAGES, frozen.joint_width), torch.zeros(CLIENTS, IMAGES, dtype=torch.long))

    def run():
        return torch.autograd.grad(method.loss(params, received, frozen, images)[0].sum(), learned)

    run()  # makes constants
    return counted(run)[1]


@pytest.mark.parametrize(("name", "shared"), [("promptfl", 16 * 64), ("coop", 0), ("fedpgp", 16 * 64)])
def test_operations_are_those_of_the_steps_and_of_the_sum_of_updates(name, shared, setting):
    """A weighted sum takes two operations for each client and number."""
    method = methods.create(name, {})
    found = figures(setting, it=method)
    expected = STEPS * of_a_step(method, setting) + 2 * CLIENTS * shared
    assert found["gflop_per_round_it"] * 1e9 == pytest.approx(expected, rel=1e-9)
    assert found["gflop_per_step_it"] * 1e9 == pytest.approx(expected / STEPS, rel=1e-9)
    oracle = STEPS * of_a_step(methods.create("promptfl", {}), setting) + 2 * CLIENTS * 16 * 64
    assert found["flops_ratio_it"] == pytest.approx(expected / oracle, rel=1e-9)
    assert found["seconds_per_flop_ratio_it"] == pytest.approx(found["seconds_ratio_it"] / found["flops_ratio_it"])


class Prepares(PromptFL):
    """PromptFL that multiplies matrices of 3 x 4 and 4 x 5 before its first step: 2 * 60 operations."""

    def prepare(self, received, frozen):
        return {"product": torch.ones(3, 4) @ torch.ones(4, 5)}


def test_what_is_computed_once_per_round_is_no_part_of_a_step(setting):
    plain, prepared = methods.create("promptfl", {}), Prepares(PromptFL.settings_type())
    found = figures(setting, plain=plain, prepared=prepared)
    assert found["gflop_once_per_round_prepared"] * 1e9 == pytest.approx(120)
    assert found["gflop_once_per_round_plain"] == 0
    assert (found["gflop_per_round_prepared"] - found["gflop_per_round_plain"]) * 1e9 == pytest.approx(120)
    assert found["gflop_per_step_prepared"] == pytest.approx(found["gflop_per_step_plain"], rel=1e-9)


def test_clients_train_one_by_one_where_memory_is_short(setting, monkeypatch):
    method = methods.create("promptfl", {})
    wide = bench.measure({"it": method}, setting, lambda text: None)
    monkeypatch.setattr(memory, "free", lambda: 1)
    narrow = bench.measure({"it": method}, setting, lambda text: None)
    assert [one.rows[0][-1] for one in (wide, narrow)] == [str(CLIENTS), "1"]


def test_of_a_slow_method_the_counted_round_is_timed(setting, monkeypatch):
    taken = []
    run = bench.Rounds.run
    monkeypatch.setattr(bench.Rounds, "run", lambda self: taken.append(run(self)) or taken[-1])
    monkeypatch.setattr(bench, "PATIENCE", 0.0)
    found = figures(setting, it=methods.create("promptfl", {}))
    assert len(taken) == 2 + 2 + 1  # both a first and a counted round; the oracle once more
    assert (found["seconds_it"], found["seconds_ratio_it"]) == (taken[3], taken[3] / taken[4])


def test_every_method_has_its_figures(fedpgp, setting, monkeypatch):
    """Through the command, in JSON; each method gets images in its form."""
    create = methods.create
    monkeypatch.setattr(methods, "create", lambda name, given: create(name, {**FIT.get(name, {}), **given}))
    monkeypatch.setattr(bench, "REPEATS", 1)
    sizes = ["--clients", CLIENTS, "--classes", CLASSES, "--images", IMAGES, "--threads", 1, "--backbone", "tiny"]
    code, out, err = fedpgp("bench", "methods", *sizes, "--json")
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    trained = [name for name in methods.METHODS if name != "zero_shot"]
    assert found["bench"] == "methods"
    assert set(found["figures"]) == {
        f"{figure}_{name}"
        for name in trained
        for figure in (
            "seconds", "gflop_per_step", "gflop_per_round", "gflop_once_per_round", "seconds_ratio", "flops_ratio",
            "seconds_per_flop_ratio", "clients_in_one_batch",
        )
    }  # fmt: skip
    assert all(found["figures"][f"gflop_per_step_{name}"] > 0 for name in trained)
    assert found["figures"]["flops_ratio_promptfl"] == 1
    assert "they train nothing: zero_shot" in " ".join(out.split())
    once = {name for name in trained if found["figures"][f"gflop_once_per_round_{name}"] > 0}
    assert once == {"pfedmoap"}
    assert f"{trained[-1]}, {len(trained)} of {len(trained)}" in err


def test_a_method_that_does_not_fit_the_backbone_is_named_and_the_others_are_measured(setting):
    chosen = {name: methods.create(name, {}) for name in ("fedmaple", "coop")}
    found = bench.measure(chosen, setting, lambda text: None)
    assert [row[0] for row in found.rows] == ["coop"]
    assert "not measured: method fedmaple: depth: 9 is more than the 2 layers of the backbone" in found.notes
