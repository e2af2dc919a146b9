"""Accuracies worked out by hand from counts."""

import pyarrow as pa
import pytest

from fedpgp.federation import metrics
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow


def rows(*counts, round=1):
    """Client rows from (client, split, metric, correct, total), and an optional domain."""
    records = [
        {
            "round": round,
            "client": c,
            "split": s,
            "metric": m,
            "correct": correct,
            "total": total,
            "domain": next(iter(d), None),
        }
        for c, s, m, correct, total, *d in counts
    ]
    return pa.Table.from_pylist(records, CLIENT_SCHEMA)


def losses(*values, metric="train"):
    records = [
        {"round": 1, "client": client, "split": "train", "metric": metric, "total": 4, "loss": value}
        for client, value in enumerate(values)
    ]
    return pa.Table.from_pylist(records, CLIENT_SCHEMA)


def test_means_are_over_clients_and_not_over_images():
    # 1/2 and 90/100: the mean of the clients is 70, of the images 89.2
    found = metrics.round_metrics(rows((0, "val", "local", 1, 2), (1, "val", "local", 90, 100)))
    assert found == {"val/local": 70.0, "val/local_worst": 50.0, "val/local_p10": 54.0}  # 50 + 0.1 * 40


def test_hm_is_the_harmonic_mean_of_the_three_means():
    table = rows(
        (0, "test", "local", 10, 10),
        (1, "test", "local", 6, 10),  # mean 80
        (0, "test", "base", 3, 10),
        (1, "test", "base", 5, 10),  # mean 40
        (0, "test", "novel", 1, 10),
        (1, "test", "novel", 3, 10),  # mean 20
    )
    # 3 / (1/80 + 1/40 + 1/20) = 3 / (7/80); the mean of the clients' own, 20.93 and 42.86, would be 31.89
    assert metrics.round_metrics(table)["test/hm"] == pytest.approx(240 / 7)
    clients = metrics.per_client_table(table, 1).to_pylist()
    assert [row["hm"] for row in clients] == pytest.approx(
        [3 / (1 / 100 + 1 / 30 + 1 / 10), 3 / (1 / 60 + 1 / 50 + 1 / 30)]
    )


def test_hm_needs_all_three_and_is_zero_if_one_is():
    local, base = (0, "test", "local", 1, 2), (0, "test", "base", 1, 2)
    assert "test/hm" not in metrics.round_metrics(rows(local, base))
    assert metrics.round_metrics(rows(local, base, (0, "test", "novel", 0, 2)))["test/hm"] == 0.0


def test_clients_without_images_and_rows_of_single_domains_are_left_out():
    table = rows(
        (0, "test", "local", 3, 4),
        (1, "test", "local", 0, 0),
        (0, "test", "local", 3, 3, "sketch"),
        (0, "test", "local", 0, 1, "photo"),
    )
    accuracies = {"test/local": 75.0, "test/local_worst": 75.0, "test/local_p10": 75.0}
    assert metrics.round_metrics(table) == {**accuracies, "test/local.photo": 0.0, "test/local.sketch": 100.0}
    assert metrics.per_client_table(table, 1).to_pylist() == [{"client": 0, "split": "test", "local": 75.0}]


def test_splits_stay_apart_and_the_loss_is_the_mean_over_clients():
    table = pa.concat_tables(
        [
            rows((0, "val", "all", 1, 4), (0, "test", "all", 3, 4), (0, "test", "local_before_aggregation", 2, 4)),
            losses(0.5, 1.0),
        ]
    )
    found = metrics.round_metrics(table)
    assert {name: value for name, value in found.items() if not name.endswith(("_worst", "_p10"))} == {
        "val/all": 25.0,
        "test/all": 75.0,
        "test/local_before_aggregation": 50.0,
        "train/loss": 0.75,
    }


def test_parts_of_the_loss_are_means_over_the_clients_of_the_loss():
    table = pa.concat_tables(
        [
            losses(0.5, 1.0, float("nan")),
            losses(0.25, 0.75, 100.0, metric="ce"),
            losses(1.0, float("nan"), 1.0, metric="con"),
        ]
    )
    assert metrics.round_metrics(table) == {"train/loss": 0.75, "train/ce": 0.5, "train/con": 1.0}
    assert metrics.per_client_table(table, 1).num_rows == 0
    assert metrics.round_metrics(pa.concat_tables([losses(float("inf")), losses(1.0, metric="ce")])) == {}


def test_a_domain_is_the_mean_over_the_clients_that_have_images_of_it():
    parts = ((0, "photo", 1, 2), (0, "sketch", 1, 1), (1, "photo", 0, 4), (1, "sketch", 0, 0))
    whole = [(0, "test", "local", 2, 3), (1, "test", "local", 0, 4)]
    found = metrics.round_metrics(rows(*whole, *((c, "test", "local", a, n, d) for c, d, a, n in parts)))
    assert [found["test/local.photo"], found["test/local.sketch"]] == [25.0, 100.0]


def test_a_metric_on_one_domain_alone_is_not_repeated():
    table = rows((0, "test", "held_out", 1, 2), (0, "test", "held_out", 1, 2, "photo"))
    assert not any("." in name for name in metrics.round_metrics(table))


def test_names_are_ordered_by_metric_and_measure():
    names = ["base.b", "base_p10", "local", "base_ece", "base", "base.a", "local_global_f1"]
    assert sorted(names, key=metrics.place) == [
        "local", "base", "base_ece", "base_p10", "base.a", "base.b", "local_global_f1",
    ]  # fmt: skip


def test_nothing_measured_gives_nothing():
    assert metrics.round_metrics(CLIENT_SCHEMA.empty_table()) == {}
    assert metrics.per_client_table(CLIENT_SCHEMA.empty_table(), 1).num_rows == 0


def test_the_per_client_table_has_a_row_per_client_and_split_of_one_round():
    table = pa.concat_tables(
        [
            rows((0, "test", "local", 0, 1)),
            rows((1, "test", "local", 1, 2), (0, "val", "base", 1, 4), (0, "test", "local", 3, 4), round=2),
        ]
    )
    assert metrics.per_client_table(table, 2).to_pylist() == [
        {"client": 0, "split": "test", "local": 75.0, "base": None},
        {"client": 0, "split": "val", "local": None, "base": 25.0},
        {"client": 1, "split": "test", "local": 50.0, "base": None},
    ]


def history(values):
    return [
        RoundRow(number, {} if value is None else {"val/hm": value}, participants=1, bytes_up=0, bytes_down=0)
        for number, value in values
    ]


def test_selections_read_the_evaluated_rounds():
    rounds = history([(0, 99.0), (1, 10.0), (2, 90.0), (3, None), (4, 30.0), (5, 40.0), (6, 50.0), (7, 60.0)])
    assert metrics.selections(rounds) == {"val/hm": {"last": 60.0, "mean_last_5": 54.0, "max": 90.0}}


def test_an_untrained_model_is_all_there_is_without_training():
    assert metrics.selections(history([(0, 20.0)])) == {"val/hm": {"last": 20.0, "mean_last_5": 20.0, "max": 20.0}}
    assert metrics.selections([]) == {}


def test_the_last_evaluated_round():
    assert metrics.last_evaluated(history([(1, 10.0), (2, 20.0), (3, None)])) == 2
    assert metrics.last_evaluated([RoundRow(1, {"train/loss": 1.0, "privacy/epsilon": 0.5}, 1, 0, 0)]) is None


def test_a_summary_is_a_run_in_numbers():
    rounds = [
        RoundRow(1, {"val/hm": 10.0}, 2, bytes_up=100, bytes_down=300, seconds={"train": 1.0}),
        RoundRow(2, {"val/hm": 20.0}, 2, bytes_up=100, bytes_down=300, seconds={"train": 2.0, "evaluate": 5.0}),
    ]
    identity = {"method": "fedpgp", "data": "shapes", "config_digest": "c", "manifest_digest": "m", "seed": 1}
    assert metrics.summarize(identity, rounds) == {
        "method": "fedpgp",
        "data": "shapes",
        "rounds": 2,
        "digests": {"config_digest": "c", "manifest_digest": "m"},
        "metrics": {"val/hm": {"last": 20.0, "mean_last_5": 15.0, "max": 20.0}},
        "bytes_up": 200,
        "bytes_down": 600,
        "seconds": {"train": 1.5, "evaluate": 5.0},
    }
    assert metrics.summarize(identity, [])["rounds"] == 0
