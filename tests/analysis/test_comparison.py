"""Groups of runs and what sets them apart; means, spreads and paired differences against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from fedpgp.analysis.comparison import Comparison, Group, Run, grouped
from fedpgp.analysis.loading import Entry, compare, read
from fedpgp.analysis.report import comparison_tables
from fedpgp.analysis.statistic import Statistic, counted, over, varied
from fedpgp.config import differing
from fedpgp.core.errors import ConfigError
from fedpgp.federation.metrics import CLIENT_SCHEMA
from fedpgp.storage.sweep_folder import Fold

HM = {"test_hm": [50, 60]}
PROMPTFL = ["method.name=promptfl"]


def run(fold, **metrics):
    """A run whose last, mean of last 5 and max of test/NAME are given."""
    read = {
        f"test/{name}": dict(zip(("last", "mean_last_5", "max"), values, strict=True))
        for name, values in metrics.items()
    }
    return Run(Path(str(fold)), "finished", None, fold, {"method.name": "fedpgp"}, {}, read)


def group(label, values, scenario="", expected=None):
    """HM by fold; mean of last 5 and max are 1 and 2 higher."""
    folds = {fold if isinstance(fold, Fold) else Fold(fold): value for fold, value in values.items()}
    runs = {fold: run(fold, hm=(value, value + 1, value + 2)) for fold, value in folds.items()}
    return Group(label, scenario, runs, frozenset(expected or folds))


def test_mean_and_standard_deviation_of_three_seeds():
    found = group("a", {1: 70.0, 2: 73.0, 3: 76.0}).statistic("hm")
    assert (found.mean, found.std, found.by_seed) == (73.0, 3.0, {1: 70.0, 2: 73.0, 3: 76.0})  # sqrt((9 + 0 + 9) / 2)


def test_one_seed_has_no_spread_and_nothing_measured_is_none():
    one = group("a", {1: 70.0})
    assert one.statistic("hm").std is None
    assert one.statistic("novel") is None
    assert one.statistic("hm", "val") is None


@pytest.mark.parametrize(("reading", "mean"), [("last", 71.0), ("mean_last_5", 72.0), ("max", 73.0)])
def test_the_readings_are_not_mixed(reading, mean):
    assert group("a", {1: 70.0, 2: 72.0}).statistic("hm", "test", reading).mean == mean


def test_paired_difference_and_its_interval_by_hand():
    ours, theirs = Statistic({1: 71.0, 2: 75.0, 3: 79.0, 4: 10.0}), Statistic({1: 70.0, 2: 73.0, 3: 76.0, 5: 99.0})
    difference = ours.minus(theirs)
    assert difference.by_seed == {1: 1.0, 2: 2.0, 3: 3.0}  # seeds 4 and 5 have no partner
    assert (difference.mean, difference.std) == (2.0, 1.0)
    low, high = difference.interval  # t(0.975, 2 degrees of freedom) = 4.302653; 4.302653 / sqrt(3) = 2.484138
    assert (low, high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


def test_pairing_removes_the_common_effect_of_seeds():
    ours, theirs = Statistic({1: 51.0, 2: 71.0}), Statistic({1: 50.0, 2: 70.0})
    assert ours.minus(theirs).interval == (1.0, 1.0)
    assert ours.std == pytest.approx(14.142136)


def test_no_common_seed_no_difference_and_one_no_interval():
    assert Statistic({1: 1.0}).minus(Statistic({2: 1.0})) is None
    assert Statistic({1: 2.0}).interval is None


def test_a_seed_is_the_mean_over_its_held_out_domains_and_a_hole_leaves_it_out():
    a, b = (Fold(1, "photo"), Fold(1, "sketch")), (Fold(2, "photo"), Fold(2, "sketch"))
    whole = group("a", {a[0]: 80.0, a[1]: 60.0, b[0]: 90.0, b[1]: 50.0})
    assert whole.statistic("hm").by_seed == {1: 70.0, 2: 70.0}
    torn = group("b", {a[0]: 80.0, a[1]: 60.0, b[0]: 90.0}, expected=[*a, *b])
    assert torn.statistic("hm").by_seed == {1: 70.0}
    assert torn.missing == [b[1]]
    comparison = Comparison((whole, torn))
    assert comparison.missing() == ["b: no run of seed 2, held out sketch"]


def test_differences_are_taken_within_a_scenario():
    pets, dtd = {"scenario": "data.name=pets"}, {"scenario": "data.name=dtd"}
    comparison = Comparison(
        (
            group("coop", {1: 60.0}, **pets),
            group("fedpgp", {1: 65.0}, **pets),
            group("coop", {1: 20.0}, **dtd),
            group("fedpgp", {1: 22.0}, **dtd),
            group("only here", {1: 22.0}, **dtd),
        )
    )
    gains = [comparison.difference(one, "coop", "hm") for one in comparison.groups]
    assert [gain and gain.mean for gain in gains] == [None, 5.0, None, 2.0, 2.0]
    assert comparison.missing() == ["no run on data.name=pets of only here"]
    assert comparison.difference(comparison.groups[0], "only here", "hm") is None


def test_the_baseline_is_the_first_or_an_existing_group():
    comparison = Comparison((group("coop", {1: 60.0}), group("fedpgp", {1: 65.0})))
    assert comparison.baseline(None) == "coop"
    assert comparison.baseline("fedpgp") == "fedpgp"
    with pytest.raises(ConfigError, match="'fedpg': no such group; known: 'coop', 'fedpgp'"):
        comparison.baseline("fedpg")


def test_the_main_metric_is_hm_if_measured():
    assert Comparison((group("a", {1: 60.0}),)).main == "hm"
    held_out = Group("a", "", {Fold(1): run(Fold(1), local=(1, 1, 1), held_out=(2, 2, 2))}, frozenset([Fold(1)]))
    assert Comparison((held_out,)).main == "held_out"


def test_absent_and_null_are_different_settings():
    assert differing([{"a": 1, "b": None, "c": [1]}, {"a": 1, "c": [1]}, {"a": 1, "b": None, "c": [1]}]) == ["b"]


def of(*paths, labels=None, merge_scenarios=False):
    """The groups of these runs, and what is left out."""
    return grouped(
        [(label, read(path)) for label, path in zip(labels or [None] * len(paths), paths, strict=True)], merge_scenarios
    )


def test_seeds_are_one_group_and_names_say_what_differs(made_run):
    paths = [made_run(f"seed={seed}", f"method.rank={rank}", **HM) for rank in (2, 4) for seed in (1, 2)]
    paths.append(made_run(*PROMPTFL, "federation.lr=0.5", **HM))
    groups, left_out = of(*paths)
    assert [(one.label, one.seeds) for one in groups] == [
        ("fedpgp, rank=2", [1, 2]),
        ("fedpgp, rank=4", [1, 2]),
        ("promptfl", [1]),
    ]
    found = Comparison(tuple(groups))
    assert found.differing == ["method.name", "method.rank", "federation.lr"]
    assert found.missing() == ["promptfl: no run of seed 2"]
    assert left_out == []


def test_labels_have_as_many_digits_as_tell_the_groups_apart(made_run):
    groups, _ = of(*(made_run(f"method.mu={mu}", **HM) for mu in (0.12341, 0.12349, 0.9995)))
    assert [one.label for one in groups] == ["fedpgp, mu=0.12341", "fedpgp, mu=0.12349", "fedpgp, mu=0.9995"]


def test_scenarios_have_as_many_digits_as_tell_them_apart(made_run):
    split = (0.300001, 0.300002)
    groups, _ = of(*(made_run(f"data.train_fraction={one}", **HM) for one in split))
    assert [one.scenario for one in groups] == [f"train_fraction={one}" for one in split]


def test_given_labels_are_kept(made_run):
    groups, _ = of(made_run(**HM), made_run(*PROMPTFL, **HM), labels=["ours", "theirs"])
    assert [one.label for one in groups] == ["ours", "theirs"]


def test_runs_on_different_data_form_scenarios_or_are_marked(made_run):
    paths = [
        made_run(f"protocol.shots={shots}", f"method.rank={rank}", partition=f"p{shots}", **HM)
        for shots, rank in ((2, 1), (2, 2), (4, 1))
    ]
    groups, _ = of(*paths)
    assert [(one.scenario, one.label) for one in groups] == [
        ("shots=2", "fedpgp, rank=1"),
        ("shots=2", "fedpgp, rank=2"),
        ("shots=4", "fedpgp, rank=1"),
    ]
    assert Comparison(tuple(groups)).missing() == ["no run on shots=4 of fedpgp, rank=2"]
    together, _ = of(*paths, merge_scenarios=True)
    assert [one.label for one in together] == [
        "fedpgp, rank=1, shots=2",
        "fedpgp, rank=2, shots=2",
        "fedpgp, rank=1, shots=4",
    ]
    assert [one.marks for one in together] == [(), (), ("another partition than fedpgp, rank=1, shots=2",)]


def test_of_two_equal_runs_the_newer_counts(made_run):
    old, new = made_run(test_hm=[50]), made_run(test_hm=[60])
    groups, left_out = of(new, old)
    assert groups[0].statistic("hm").by_seed == {1: 60.0}
    assert left_out == [f"left out: {old.name}, since {new.name} is newer"]


def test_a_group_says_over_how_many_clients_its_means_are(made_run):
    rows = [
        {"round": 1, "client": client, "split": "test", "metric": "local", "correct": 1, "total": total}
        for client, total in enumerate((2, 0))
    ]
    groups, _ = of(made_run(clients=pa.Table.from_pylist(rows, CLIENT_SCHEMA), test_local=[50], val_local=[50]))
    said = "Local (test): mean over 1 of 2 clients (1 has no test image)"
    assert groups[0].notes == (said,)
    assert (groups[0].notes_on("test/local"), groups[0].notes_on("val/local")) == (said, "")
    comparison = Comparison(tuple(groups))
    assert f"† {said}" in comparison_tables.remarks(comparison)
    assert [row[0].text for row in comparison_tables.accuracies(comparison, "").rows] == ["fedpgp †"]
    lines = comparison_tables.as_csv(comparison, "fedpgp").splitlines()
    assert [said in line for line in lines[1:]] == ["test,local" in line for line in lines[1:]]


def test_what_a_choice_determines_is_not_in_the_labels(made_run):
    """`trim` is that of one rule alone, and `scale` the same for all attacks; both rules of `f` differ in it."""
    attack = "federation.attack={kind: sign_flip, fraction: 0.2}"
    rules = ["{name: fedavg}", "{name: trimmed_mean, trim: 0.2}", "{name: krum, f: 1}", "{name: krum, f: 2}"]
    runs = [made_run(f"federation.server={rule}", test_hm=[50]) for rule in rules]
    runs.append(made_run("federation.server={name: fedavg}", attack, test_hm=[40]))
    labels = [group.label for group in compare([Entry(path) for path in runs]).groups]
    assert labels == [
        "fedpgp, server=fedavg, attack=-", "fedpgp, server=trimmed_mean, attack=-",
        "fedpgp, server=krum, f=1, attack=-", "fedpgp, server=krum, f=2, attack=-",
        "fedpgp, server=fedavg, attack=sign_flip",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("repetitions", "text", "cell", "name"),
    [
        ([1], "one seed", "1", "seeds"),
        ([1, 2, 3], "3 seeds", "3", "seeds"),
        ([(1, 1)], "one seed", "one seed", "seeds"),
        ([(1, 1), (1, 2)], "2 splits", "2 splits", "splits"),
        ([(one, two) for one in (1, 2) for two in (1, 2, 3)], *["2 seeds x 3 splits"] * 2, "seeds and splits"),
    ],
)
def test_what_means_are_over(repetitions, text, cell, name):
    assert (over(repetitions), counted(repetitions), varied(repetitions)) == (text, cell, name)


def test_a_mean_over_domains_for_each_seed_and_split():
    values = {Fold(1, domain, split): value for (domain, split), value in zip(
        [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 3)], [60.0, 70.0, 50.0, 52.0, 10.0], strict=True
    )}  # fmt: skip
    found = group("a", values).statistic("hm")
    assert found.by_seed == {(1, 1): 65.0, (1, 2): 51.0}  # split 3 lacks a domain
    assert found.mean == 58.0
