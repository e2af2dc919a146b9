"""Runs of equal settings are one group, named by what sets it apart."""

from __future__ import annotations

from fedpgp.analysis.comparison import Comparison
from fedpgp.analysis.groups import grouped
from fedpgp.analysis.loading import read

HM = {"test_hm": [50, 60]}
PROMPTFL = ["method.name=promptfl"]


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
