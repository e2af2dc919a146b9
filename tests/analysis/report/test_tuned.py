"""What validation images choose of several settings of a method, and the figures of it, with numbers chosen by hand."""

from pathlib import Path

import pytest

from fedpgp.analysis.comparison import Comparison, Group, Run, chosen
from fedpgp.analysis.labels import scenario_name, texts
from fedpgp.analysis.loading import Curve
from fedpgp.analysis.report import tuned_figures, tuned_tables
from fedpgp.core.errors import ConfigError
from fedpgp.storage.sweep_folder import Fold

FEW, MANY = "classes_per_client=1", "classes_per_client=4"


def group(family, setting, scenario, val, **test):
    """A group over two seeds: HM on validation images, other metrics on test images; seed 2 is 1 or 2 above seed 1."""
    runs = {}
    for seed in (1, 2):
        numbers = {"val/hm": val + seed, **{f"test/{name}": value + seed for name, value in test.items()}}
        read = {name: dict.fromkeys(("last", "mean_last_5", "max"), value) for name, value in numbers.items()}
        settings = {"method.name": family, "federation.lr": setting}
        runs[Fold(seed)] = Run(Path(f"{family}{setting}{seed}"), "finished", None, Fold(seed), settings, {}, read)
    return Group(f"{family}, lr={setting}", scenario, runs, frozenset(runs), family=family)


@pytest.fixture(scope="module")
def comparison():
    """In each scenario the setting that is best on test images is not the one that is best on validation images."""
    return Comparison(
        (
            group("promptfl", 0.1, FEW, 60, hm=70, local=71, novel=60),
            group("promptfl", 0.2, FEW, 61, hm=68, local=70, novel=61),
            group("fedpgp", 0.1, FEW, 65, hm=71, local=80, novel=55),
            group("fedpgp", 0.2, FEW, 64, hm=75, local=81, novel=54),
            group("promptfl", 0.1, MANY, 62, hm=66, local=60, novel=60),
            group("fedpgp", 0.1, MANY, 62, hm=64, local=61, novel=59),
        )
    )


def test_validation_images_choose_and_test_images_do_not(comparison):
    found = chosen(comparison.scenarios[FEW], "hm")
    assert {family: one.label for family, one in found.items()} == {
        "promptfl": "promptfl, lr=0.2", "fedpgp": "fedpgp, lr=0.1",
    }  # fmt: skip


def test_a_family_as_the_baseline_means_its_settings_chosen_in_each_scenario(comparison):
    assert comparison.baseline("promptfl") == "promptfl"
    few, many = (chosen(groups, "hm")["fedpgp"] for groups in comparison.scenarios.values())
    assert comparison.difference(few, "promptfl", "hm").by_seed == {1: 3.0, 2: 3.0}  # 71 - 68
    assert comparison.difference(many, "promptfl", "hm").by_seed == {1: -2.0, 2: -2.0}  # 64 - 66
    assert comparison.difference(few, "promptfl, lr=0.1", "hm").mean == 1.0  # 71 - 70
    assert comparison.difference(comparison.groups[1], "promptfl", "hm") is None
    with pytest.raises(ConfigError, match="'promptfl', 'fedpgp'"):
        comparison.baseline("coop")


def test_the_table_names_the_settings_and_how_many_there_were(comparison):
    first, second = tuned_tables.of_scenarios(comparison)
    assert first.title.endswith(FEW)
    assert first.headings == ("", "chosen", "of", "Local", "Novel", "HM")
    rows = [[cell.text for cell in row] for row in first.rows]
    assert rows[1][:3] == ["fedpgp", "lr=0.1", "2"]
    assert [row[-1] for row in rows] == ["69.50 ± 0.71", "72.50 ± 0.71"]
    assert [row[2].text for row in second.rows] == ["1", "1"]


def test_figures_show_gains_all_settings_with_their_front_and_the_way_there(comparison, monkeypatch):
    def curve(group, metric):
        last = group.statistic(metric).mean
        return Curve((1, 2), (last - 10, last), (0, 0), (0, 0))

    monkeypatch.setattr(tuned_figures.loading, "curve", curve)
    gains, reach, paths = tuned_figures.figures(comparison, "promptfl, lr=0.1")
    assert (gains.name, gains.title, reach.name, paths.name) == ("gains", "Gain over promptfl", "reach", "paths")
    panels = gains.figure.axes
    assert [axes.get_title() for axes in panels] == ["HM", "Local", "Novel"]
    points = [line.get_xdata()[0] for line in panels[0].lines if line.get_marker() == "s" or len(line.get_xdata()) == 1]
    assert {3.0, -2.0} <= set(points)
    few = reach.figure.axes[0]
    lines = {tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in few.lines}
    assert {(82.5, 55.5), (81.5, 56.5)} <= {point for line in lines for point in line}
    assert ((82.5, 55.5), (81.5, 56.5)) in lines or ((81.5, 56.5), (82.5, 55.5)) in lines  # the front of fedpgp
    assert ((81.5, 56.5),) in lines  # its star
    many = paths.figure.axes[1]
    ways = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in many.lines]
    assert [(52.5, 50.5), (62.5, 60.5)] in ways


def test_one_setting_for_each_method_is_not_tuned(comparison):
    alone = Comparison(comparison.scenarios[MANY])
    assert not alone.is_tuned
    assert tuned_tables.of_scenarios(alone) == []
    assert list(tuned_figures.figures(alone, "promptfl")) == []


def test_scenarios_are_named_by_what_their_scheme_varies():
    trees = [
        {"partition.scheme": scheme, "partition.beta": beta, "partition.classes_per_client": classes}
        for scheme, beta, classes in (("pathological", 0.3, 1), ("pathological", 0.3, 4), ("dirichlet", 0.1, None),
                                      ("dirichlet", 1, None), ("iid", 0.3, None))
    ]  # fmt: skip
    shown = texts(trees)
    assert [scenario_name(own, shown, list(trees[0])) for own in shown] == [
        "scheme=pathological, classes_per_client=1", "scheme=pathological, classes_per_client=4",
        "scheme=dirichlet, beta=0.1", "scheme=dirichlet, beta=1", "scheme=iid",
    ]  # fmt: skip
