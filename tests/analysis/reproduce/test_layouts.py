"""Numbers derived from runs: combined means, accuracies on other clients' classes, data sets of one federation."""

from __future__ import annotations

from statistics import fmean

import pyarrow as pa
import pytest

from fedpgp.analysis import loading
from fedpgp.analysis.reproduce import layouts
from fedpgp.analysis.reproduce.layouts import Member
from fedpgp.analysis.reproduce.published import Key
from fedpgp.federation.metrics import CLIENT_SCHEMA


def member(variant, run, *data):
    return Member(variant, data, loading.read(run), frozenset())


def test_the_combined_mean_of_a_data_set_and_the_mean_of_these(made_run):
    members = [
        member("FedMGP", made_run("seed=1", name="a", test_local=[90], test_base=[60], test_novel=[30]), "dtd"),
        member("FedMGP", made_run("seed=1", name="b", test_local=[80], test_base=[50], test_novel=[50]), "food101"),
        member("FedMGP", made_run("seed=2", name="b", test_local=[70], test_base=[20], test_novel=[20]), "food101"),
    ]
    found = layouts.combined_mean(members, ("dtd", "food101"))
    assert found[Key("dtd", "FedMGP", "cm")] == {1: pytest.approx((90 + 40) / 2)}  # 2 / (1/60 + 1/30) = 40
    assert found[Key("food101", "FedMGP", "cm")] == {1: 65, 2: 45}
    assert found[Key("average", "FedMGP", "novel")] == {1: 40}  # seed 2 has one data set only
    assert found[Key("average", "FedMGP", "cm")] == {1: pytest.approx(65)}  # and not that of the means, 66.2
    assert layouts.combined_mean(members[:1], ("dtd",)).keys() == {
        Key("dtd", "FedMGP", column) for column in ("local", "base", "novel", "cm")
    }


THREE = {"client_names": ["anna", "ben", "cleo"]}


def counted(**rows):
    """Client rows of round 1: `local=[(right, images), ...]` by client."""
    return pa.Table.from_pylist(
        [
            {"round": 1, "client": client, "split": split, "metric": metric, "domain": domain, "correct": right,
             "total": images}
            for metric, own in rows.items()
            for client, (right, images) in enumerate(own)
            for split, domain in (("test", None), ("test", "sketch"), ("val", None))
            if images
        ],
        CLIENT_SCHEMA,
    )  # fmt: skip


def test_the_classes_of_all_other_clients_are_all_minus_the_own_ones(made_run):
    clients = counted(local=[(4, 5), (5, 10), (0, 0)], all=[(12, 20), (10, 20), (6, 20)])
    run = made_run("seed=3", "protocol.name=all_classes", clients=clients, test_local=[65], more=THREE)
    found = layouts.neighbors([member("DP-FPL", run, "dtd", "food101")], ("dtd", "food101"))
    expected = fmean([100 * 8 / 15, 100 * 5 / 10, 100 * 6 / 20])
    assert found == {
        Key("local", "DP-FPL", "dtd"): {3: 65},
        Key("local", "DP-FPL", "food101"): {3: 65},
        Key("neighbor", "DP-FPL", "dtd"): {3: pytest.approx(expected)},
        Key("neighbor", "DP-FPL", "food101"): {3: pytest.approx(expected)},
    }


def test_an_only_client_has_no_neighbors(made_run):
    run = made_run("protocol.name=all_classes", clients=counted(local=[(4, 5)], all=[(4, 5)]), test_local=[80])
    assert list(layouts.neighbors([member("DP-FPL", run, "dtd")], ("dtd",))) == [Key("local", "DP-FPL", "dtd")]


UNION = (
    "data.name=union",
    'data.parts=[{"name": "dtd", "root": "d"}, {"name": "food101", "root": "f"}, {"name": "eurosat", "root": "e"}]',
)


def test_data_sets_of_one_federation_and_their_means(made_run):
    accuracies = {
        "test/base": [50], "test/base.dtd": [40], "test/base.food101": [60], "test/base.eurosat": [80],
        "test/local": [1], "test/local.dtd": [1], "test/local_own": [7], "test/local_own.dtd": [90],
        "test/local_own.food101": [80], "test/local_own.eurosat": [70],
    }  # fmt: skip
    run = made_run(*UNION, "partition.clients=1", **accuracies)
    found = layouts.by_federation([member("FedTPG", run, "dtd", "food101", "eurosat")], ())
    assert found == {
        Key("local_own", "FedTPG", "dtd"): {1: 90},
        Key("local_own", "FedTPG", "food101"): {1: 80},
        Key("local_own", "FedTPG", "eurosat"): {1: 70},
        Key("local_own", "FedTPG", "mean"): {1: 80},
        Key("base", "FedTPG", "dtd"): {1: 40},
        Key("base", "FedTPG", "food101"): {1: 60},
        Key("base", "FedTPG", "eurosat"): {1: 80},
        Key("base", "FedTPG", "mean"): {1: 60},
    }


def test_data_sets_on_which_nobody_trains(made_run):
    accuracies = {
        "test/local_own": [93], "test/held_out": [45], "test/held_out.food101": [50], "test/held_out.eurosat": [40],
    }  # fmt: skip
    run = made_run(*UNION, "partition.clients=1", "protocol.name=cross_data", "protocol.source=dtd", **accuracies)
    found = layouts.by_federation([member("FedTPG", run, "dtd")], ())
    assert found == {
        Key("local_own", "FedTPG", "dtd"): {1: 93},
        Key("held_out", "FedTPG", "food101"): {1: 50},
        Key("held_out", "FedTPG", "eurosat"): {1: 40},
        Key("held_out", "FedTPG", "mean"): {1: 45},
    }


def test_one_data_set_with_domains_is_one_data_set(made_run):
    accuracies = {"test/base": [50], "test/base.noto": [40], "test/base.lucide": [60]}
    found = layouts.by_federation([member("FedTPG", made_run(**accuracies), "dtd")], ())
    assert found == {Key("base", "FedTPG", "dtd"): {1: 50}}
