"""Federations of two data sets, and clients that train among their own classes, as whole experiments."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from fedpgp import config
from fedpgp.analysis.report import measure_tables
from fedpgp.analysis.report.run_figures import draw_data
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import planning, runner
from fedpgp.export.exporting import learned_prompt
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


@pytest.fixture(scope="module")
def promptfl(root):
    return finished(settings(root, method={"name": "promptfl", "n_ctx": 2}))


def test_measures_by_data_set_are_over_all_domains_of_it(promptfl):
    """A part with several domains had accuracies by part, and measures by domain that no row showed."""
    table = measure_tables.domains_of_run(promptfl)
    assert table.headings[:2] == ("metric", "data set")
    rows = {(row[0].text, row[1].text): row for row in table.rows}
    assert rows.keys() == {(metric, part) for metric in ("Local", "Base", "Novel") for part in ("icons", "more shapes")}
    pooled = [
        row for row in promptfl.pooled().to_pylist()
        if (row["round"], row["split"], row["metric"]) == (2, "test", "novel") and row["domain"].startswith("icons")
        and row["label"] is not None
    ]  # fmt: skip
    labels = {row["label"] for row in pooled}
    sums = {
        name: [sum(row[name] for row in pooled if row["label"] == one) for one in labels]
        for name in ("correct", "images")
    }
    recall = np.mean(np.divide(sums["correct"], sums["images"]))
    assert float(rows["Novel", "icons"][5].text) == pytest.approx(100 * recall, abs=0.005)


def test_the_prompt_of_a_client_knows_the_classes_of_its_part(promptfl, tmp_path):
    identity = promptfl.identity
    assert {title: len(part["clients"]) for title, part in identity["parts"].items()} == {"icons": 3, "more shapes": 2}
    last, server = (learned_prompt(promptfl.path, client) for client in ("4", "global"))
    shapes = identity["parts"]["more shapes"]["class_names"]
    half = (len(shapes) + 1) // 2
    assert (last.card["class_names"], last.card["unseen_class_names"]) == (shapes[:half], shapes[half:])
    assert last.card["template"] == "one {}."
    assert set(last.card["trained_on"]["own_classes"]) < set(shapes[:half])
    assert server.card["class_names"] == identity["parts"]["icons"]["class_names"][:40] + shapes[:half]
    assert server.card["template"] == "a photo of a {}."  # those of the parts differ
    answers = last.predict([Image.new("RGB", (32, 32))], top=2)
    assert set(answers["class"]) <= set(shapes[:half])


def test_each_client_of_a_union_is_drawn(root, tmp_path):
    names = [path.name for path in draw_data(settings(root), tmp_path, 5)]
    assert names == [
        "partition.png",
        "partition.svg",
        *(
            f"client-{number:04d}-{part}-{own}.png"
            for number, (part, own) in enumerate(
                [("icons", 0), ("icons", 1), ("icons", 2), ("more-shapes", 0), ("more-shapes", 1)]
            )
        ),
    ]


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
