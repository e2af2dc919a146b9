"""Federations of two data sets, and clients that train among their own classes, as whole experiments."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from fedpgp import config
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import planning, runner
from fedpgp.storage.run_folder import RunFolder

SHAPES = {"name": "shapes", "title": "more shapes", "template": "one {}."}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def settings(root, backend="serial", **changes):
    tree = {
        "data": {"name": "union", "parts": [{"name": "icons"}, SHAPES]},
        "protocol": {"shots": 1},
        "partition": {"clients": {"icons": 3, "more shapes": 2}},
        "method": {"name": "fedpgp", "n_ctx": 2, "rank": 1},
        "backbone": {"name": "tiny", "weights": "random"},
        "federation": {"rounds": 2, "batch_size": 4, "block_size": 2, "local_epochs": 1},
        "resources": {"backend": backend},
        "storage": {"root": str(root)},
        "tracking": {"mlflow": False},
    }
    for section, values in changes.items():
        tree[section] = {**tree[section], **values} if "name" not in values else values
    return config.parse(tree)


def finished(wanted):
    return RunFolder.open(runner.run(wanted, False, callback=RunCallback(), stop=threading.Event()))


def by_client(store, metric, split="test"):
    rows = [
        row for row in store.clients().to_pylist() if (row["metric"], row["split"], row["round"]) == (metric, split, 2)
    ]
    return {(row["client"], row["domain"]): 100 * row["correct"] / row["total"] for row in rows if row["total"]}


def test_accuracies_of_a_union_are_those_of_each_part_and_their_mean(root):
    store = finished(settings(root))
    metrics = store.rounds()[-1].metrics
    for metric in ("local", "base", "novel"):
        found = by_client(store, metric)
        assert {client for client, _ in found} == set(range(5))
        icons = np.mean([found[client, None] for client in range(3)])
        shapes = np.mean([found[client, None] for client in (3, 4)])
        assert metrics[f"test/{metric}.icons"] == pytest.approx(icons)
        assert metrics[f"test/{metric}.more shapes"] == pytest.approx(shapes)
        assert metrics[f"test/{metric}"] == pytest.approx((icons + shapes) / 2)
        for client, domain in found:
            assert domain is None or domain.startswith("icons" if client < 3 else "more shapes")


def test_a_client_of_a_union_learns_like_alone(root):
    """Blocks hold clients of both parts: each trains among the classes of its part, with its hand-written prompt."""
    together, alone = (
        finished(settings(root, federation={"block_size": size}, protocol={"name": "all_classes", "shots": 1}))
        for size in (5, 1)
    )
    states = [store.state_at(2) for store in (together, alone)]
    for key, value in states[0].personal.items():
        torch.testing.assert_close(value, states[1].personal[key], atol=1e-5, rtol=0)


def test_the_hand_written_prompt_is_that_of_the_part(root):
    plan = planning.plan(settings(root))
    icons, shapes = (plan.text.on(plan.data.class_sets[f"base/{part}"]) for part in ("icons", "more shapes"))
    assert plan.text.templates[0] != "one {}." == plan.text.templates[-1]
    other = planning.plan(settings(root, data={"name": "shapes", "template": "one {}."}, partition={"clients": 2}))
    expected = other.text.on(other.data.class_sets["base"]).template()
    torch.testing.assert_close(shapes.template(), expected, atol=1e-6, rtol=0)
    assert icons.num_classes == 40
