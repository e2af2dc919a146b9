"""Sampled trials: number, order, settings and ids."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedpgp.core.errors import ConfigError
from fedpgp.core.seeding import numpy_generator
from fedpgp.experiments.sweeps import sweep_settings
from fedpgp.experiments.sweeps.sampling import draw, folds
from fedpgp.storage.sweep_folder import Fold

BASE = {"method": {"name": "fedpgp", "n_ctx": 4}}
LODO = {
    "protocol": {"name": "leave_one_domain_out", "held_out": "all"},
    "partition": {"scheme": "domain", "clients": None},
}
NEW = {"partition": {"unseen_clients": 0.2}}


def sweep(base=BASE, **tree):
    return sweep_settings.Sweep.model_validate({"base": base, **tree})


def settings(drawn):
    return [dict(trial.settings) for trial in drawn.trials]


def test_a_grid_in_the_order_of_its_keys():
    drawn = draw(sweep(space={"method.rank": {"grid_search": [1, 2]}, "protocol.shots": {"grid_search": [4, 16]}}))
    assert settings(drawn) == [
        {"method.rank": rank, "protocol.shots": shots} for rank in (1, 2) for shots in (4, 16)
    ]  # fmt: skip
    assert [trial.label for trial in drawn.trials] == [f"rank={r}, shots={s}" for r in (1, 2) for s in (4, 16)]
    assert drawn.trials[1].experiment.method.settings["rank"] == 1
    assert drawn.trials[1].experiment.protocol.shots == 16
    assert (drawn.objectives.name, drawn.repeated) == ("val/hm", 0)


def test_variants_are_a_dimension_and_another_method_keeps_what_it_has():
    variants = {"CoOp": {"method.name": "coop", "federation.lr": 0.03}, "FedPGP": {}}
    drawn = draw(sweep(variants=variants, space={"protocol.shots": {"grid_search": [4, 16]}}))
    assert [trial.label for trial in drawn.trials] == [f"{m}, shots={s}" for m in ("CoOp", "FedPGP") for s in (4, 16)]
    assert [trial.experiment.method.name for trial in drawn.trials] == ["coop", "coop", "fedpgp", "fedpgp"]
    assert [trial.experiment.federation.lr for trial in drawn.trials] == [0.03, 0.03, 0.001, 0.001]
    assert [trial.experiment.method.settings["n_ctx"] for trial in drawn.trials] == [4, 4, 4, 4]
    assert drawn.dropped == ""


@pytest.mark.parametrize(
    "tree",
    [
        {"space": {"method.name": {"grid_search": ["promptfl", "zero_shot", "coop", "fedpgp"]}}},
        {
            "space": {
                "method": {"grid_search": [{"name": name} for name in ("promptfl", "zero_shot", "coop", "fedpgp")]}
            }
        },
        {"variants": {name: {"method.name": name} for name in ("promptfl", "zero_shot", "coop", "fedpgp")}},
        {"variants": {name: {"method": {"name": name}} for name in ("promptfl", "zero_shot", "coop", "fedpgp")}},
    ],
)
def test_settings_that_searched_methods_do_not_have_are_said_in_one_line(tree):
    drawn = draw(sweep({"method": {"name": "fedpgp", "n_ctx": 4, "rank": 2}}, **tree))
    settings = [trial.experiment.method.settings for trial in drawn.trials]
    assert [own.get("n_ctx") for own in settings] == [4, None, 4, 4]
    assert drawn.dropped == (
        "method.name=promptfl, coop: dropped rank=2 (which it does not take) of the base; "
        "method.name=zero_shot: dropped n_ctx=4, rank=2 (which it does not take) of the base"
    )


@pytest.mark.parametrize(
    ("key", "one", "other"), [("data.root", "/a/pets", "/b/pets"), ("backbone.weights", "/a/w.pt", "/b/w.pt")]
)
def test_trials_that_differ_in_a_path_alone_are_refused(key, one, other):
    """A trial is identified without paths, so the second one was dropped as a duplicate without a word."""
    base = {"data": {"name": "folder", "root": "/a/pets"}, "backbone": {"name": "tiny", "weights": "random"}}
    with pytest.raises(ConfigError, match=f"{key}: {one} and {other}: a path does not tell trials apart; run a sweep"):
        draw(sweep({**BASE, **base}, space={key: {"grid_search": [one, other]}}))


def test_roots_of_parts_do_not_tell_trials_apart():
    """The second trial was dropped as a duplicate without a word."""
    data = [{"name": "union", "parts": [{"name": "icons"}, {"name": "folder", "root": root}]} for root in ("/a", "/b")]
    with pytest.raises(ConfigError, match=r"data.root: None, /a and None, /b: a path does not tell trials apart"):
        draw(sweep(BASE, space={"data": {"grid_search": data}}))


@pytest.mark.parametrize(
    ("protocol", "metric", "fits"),
    [
        ({}, "val/local.photos", True),
        ({}, "val/local.photos/ink", False),  # rows are of data sets
        ({"name": "cross_data", "source": "icons"}, "val/local.icons", False),  # the only one that trains
        ({"name": "cross_data", "held_out": "icons"}, "val/local.icons", False),
        ({"name": "cross_data", "held_out": "icons"}, "val/local.photos", True),
    ],
)
def test_a_metric_of_one_data_set_of_a_union(protocol, metric, fits):
    parts = [{"name": "icons"}, {"name": "shapes", "title": "photos"}, {"name": "shapes"}]
    chosen = sweep({**BASE, "data": {"name": "union", "parts": parts}, "protocol": protocol}, tune={"metric": metric})
    trial = draw(chosen).trials[0]
    names = ("icons", "photos", "shapes")
    if fits:
        assert len(folds(chosen, trial, names)) == 1
    else:
        with pytest.raises(ConfigError, match=f"tune.metric: {metric} is not measured with these data and folds"):
            folds(chosen, trial, names)


def test_of_two_domains_none_is_measured_by_itself_if_one_is_held_out():
    base = {"protocol": {"name": "leave_one_domain_out", "held_out": "ink"}}
    base |= {"partition": {"scheme": "domain", "clients": None}, "data": {"name": "domain_folder", "root": "/x"}}
    chosen = sweep({**BASE, **base}, tune={"metric": "val/local.oil"})
    with pytest.raises(ConfigError, match="no domain is measured by itself"):
        folds(chosen, draw(chosen).trials[0], ("ink", "oil"))


def test_accuracy_among_own_classes_needs_them():
    with pytest.raises(ConfigError, match=r"val/local_own is not measured without protocol.train_classes=own"):
        draw(sweep(BASE, tune={"metric": "val/local_own"}))


SHIPPED = Path(sweep_settings.__file__).parents[3] / "tune_configs" / "demo.yaml"


@pytest.mark.parametrize("name", ["demo", str(SHIPPED), "all_methods", "base_to_novel_5datasets", "lora"])
def test_what_variants_of_a_shipped_sweep_drop_by_design_is_not_said(name):
    assert draw(sweep_settings.load(name)[0]).dropped == ""


def test_what_a_person_gives_is_said_where_a_shipped_sweep_drops_it(tmp_path):
    changed = draw(sweep_settings.load("demo", ["method.rank=2", "federation.rounds=1"])[0])
    lost = "method.name=zero_shot, coop, promptfl: dropped rank=2 (which it does not take) of the base"
    assert changed.dropped == lost
    searched = draw(sweep_settings.load("icons", ["method.name={grid_search: [zero_shot, fedpgp]}"])[0])
    lost = "method.name=zero_shot: dropped ctx_init=an icon of a, rank=4, mu=0.2, init=lora"
    assert searched.dropped.startswith(lost)
    copy = tmp_path / "demo.yaml"
    copy.write_text(SHIPPED.read_text())
    assert "rank=4" in draw(sweep_settings.load(str(copy))[0]).dropped


@pytest.mark.parametrize(
    ("space", "labels"),
    [
        ({"method.mu": {"grid_search": [0.12341, 0.12349]}}, ["mu=0.12341", "mu=0.12349"]),
        ({"federation.momentum": {"grid_search": [0.9995]}}, ["momentum=0.9995"]),
        (
            {"method": {"grid_search": [{"name": "fedpgp", "mu": 0.1}, {"name": "fedpgp", "mu": 0.2}]}},
            ["method=fedpgp, mu=0.1", "method=fedpgp, mu=0.2"],
        ),
        (
            {"data": {"grid_search": [{"name": "shapes"}, {"name": "shapes", "template": "a {}"}, {"name": "icons"}]}},
            ["data=shapes", "data=shapes, template=a {}", "data=icons"],
        ),
        ({"method.ctx_init": {"grid_search": [None, "a photo"]}}, ["ctx_init=null", "ctx_init=a photo"]),
    ],
)
def test_labels_tell_the_trials_apart(space, labels):
    assert [trial.label for trial in draw(sweep(space=space)).trials] == labels


def test_random_values_have_as_many_digits_as_tell_them_apart():
    drawn = draw(sweep(space={"method.mu": {"uniform": [0.1, 0.1005]}}, tune={"num_samples": 40}))
    labels = [trial.label for trial in drawn.trials]
    assert len(set(labels)) == 40
    assert max(map(len, labels)) <= len("mu=0.1001234")


def test_a_section_is_merged_into_the_base():
    values = [{"name": "icons"}, {"name": "shapes", "template": "a {}"}]
    base = {**BASE, "data": {"name": "dtd", "root": "/dtd", "template": "{} texture.", "val_fraction": 0.1}}
    drawn = draw(sweep(base, space={"data": {"grid_search": values}}))
    assert [trial.label for trial in drawn.trials] == ["data=icons", "data=shapes"]
    first, second = (trial.experiment.data for trial in drawn.trials)
    assert (first.name, first.root, first.template, first.val_fraction) == ("icons", None, None, 0.1)
    assert second.template == "a {}"


def test_draws_depend_on_seed_key_sample_and_point_alone():
    search_space = {"method.mu": {"uniform": [0.0, 1.0]}, "method.rank": {"grid_search": [1, 2]}}
    drawn = draw(sweep(space=search_space, tune={"num_samples": 3}))
    assert [trial.settings["method.rank"] for trial in drawn.trials] == [1, 2, 1, 2, 1, 2]
    values = [trial.settings["method.mu"] for trial in drawn.trials]
    assert len(set(values)) == 6
    assert all(0 <= value < 1 for value in values)
    assert settings(draw(sweep(space=search_space, tune={"num_samples": 3}))) == settings(drawn)
    assert settings(draw(sweep(space=search_space, tune={"num_samples": 2}))) == settings(drawn)[:4]
    more = draw(sweep(space={**search_space, "method.tau": {"uniform": [0.1, 1.0]}}, tune={"num_samples": 3}))
    assert [trial.settings["method.mu"] for trial in more.trials] == values
    other = draw(sweep(space=search_space, tune={"num_samples": 3, "seed": 2}))
    assert not set(values) & {trial.settings["method.mu"] for trial in other.trials}


def test_ranges_are_those_of_tune():
    """randint excludes its upper bound; loguniform is uniform in the logarithm."""
    generator = numpy_generator(1, "test")
    whole = sweep_settings.parse_term("k", {"randint": [2, 5]})
    assert sweep_settings.parse_term("k", {"randint": [2.0, "5"]}) == whole
    assert sweep_settings.parse_term("k", {"uniform": ["1e-1", 1]}).values == (0.1, 1.0)
    assert {whole.draw(generator) for _ in range(100)} == {2, 3, 4}
    rate = sweep_settings.parse_term("k", {"loguniform": [1e-4, 1.0]})
    draws = [rate.draw(generator) for _ in range(2000)]
    assert all(1e-4 <= value < 1 for value in draws)
    assert sum(math.log10(value) for value in draws) / 2000 == pytest.approx(-2, abs=0.1)
    choice = sweep_settings.parse_term("k", {"choice": ["a", "b"]})
    assert {choice.draw(generator) for _ in range(50)} == {"a", "b"}


def test_duplicate_trials_are_dropped():
    drawn = draw(sweep(space={"method.rank": {"choice": [1, 2]}}, tune={"num_samples": 20}))
    assert sorted(trial.settings["method.rank"] for trial in drawn.trials) == [1, 2]
    assert drawn.repeated == 18


def test_the_trial_id_ignores_folds_and_paths():
    def only(**tree):
        (trial,) = draw(sweep({**BASE, **tree})).trials
        return trial.id

    plain = only()
    assert only(seed=7, name="other", storage={"root": "/x"}, resources={"actors": 5}) == plain
    assert only(federation={"rounds": 11}) != plain
    here, there = (
        only(backbone={"name": "ViT-B-32", "weights": f"{folder}/model.pt"}, data={"name": "dtd", "root": folder})
        for folder in ("/a", "/b")
    )
    assert here == there
    held = [draw(sweep({**LODO, "protocol": {**LODO["protocol"], "held_out": one}})).trials[0].id for one in "ab"]
    assert held[0] == held[1]


def test_all_invalid_trials_are_reported_at_once():
    search_space = {"method.rank": {"grid_search": [1, 0]}, "federation.lr": {"grid_search": [0.1, -1.0]}}
    with pytest.raises(ConfigError) as error:
        draw(sweep(space=search_space))
    lines = str(error.value).splitlines()
    assert any("rank" in line and "[1 of 4 trials: rank=0, lr=0.1]" in line for line in lines)
    assert any("federation.lr" in line and "[2 of 4 trials: rank=1, lr=-1; rank=0, lr=-1]" in line for line in lines)


def test_an_unknown_key_is_reported_once():
    with pytest.raises(ConfigError, match=r"^method fedpgp: rnk: unknown key; did you mean rank\?$"):
        draw(sweep(space={"method.rnk": {"grid_search": [1, 2, 4]}}))


@pytest.mark.parametrize(
    ("base", "metric", "message"),
    [
        (LODO, "val/hm", "val/hm is not measured with protocol.name=leave_one_domain_out"),
        (LODO, "val/held_out", "use val/local, val/all"),
        ({"protocol": {"name": "all_classes"}}, "test/base", "use test/local, test/all"),
        ({}, "new_client/hm", "new_client/hm is not measured without partition.unseen_clients above 0"),
        ({}, "test/local_adapted", "test/local_adapted is measured on new clients only; use new_client/local_adapted"),
        (NEW, "new_client/local_global", "new_client/local_global is not measured; use new_client/local$"),
        (NEW, "new_client/local_before_aggregation", "use new_client/local$"),
        (
            {**NEW, "federation": {"new_client_epochs": 0}},
            "new_client/hm_adapted",
            "new_client_epochs=0.*new_client/hm$",
        ),
        ({**NEW, "method": {"name": "zero_shot"}}, "new_client/hm_adapted", "a method that does not train"),
    ],
)
def test_a_metric_that_is_not_measured(base, metric, message):
    with pytest.raises(ConfigError, match=message):
        draw(sweep(base, tune={"metric": metric}))


@pytest.mark.parametrize("metric", ["val/local_worst", "val/novel_f1", "test/base_p10", "val/base.sketch"])
def test_a_measure_or_a_domain_can_select(metric):
    assert draw(sweep(tune={"metric": metric})).objectives.name == metric


def test_a_calibration_error_selects_its_minimum():
    with pytest.raises(ConfigError, match=r"^tune.mode: val/base_ece is the better the smaller it is; give .*=min$"):
        draw(sweep(tune={"metric": "val/base_ece"}))
    assert draw(sweep(tune={"metric": "val/base_ece", "mode": "min"})).objectives.name == "val/base_ece"


@pytest.mark.parametrize(
    ("domains", "held_out", "message"),
    [
        (["a", "b", "c"], ["a"], "domains of every fold: b, c$"),
        (["a", "b"], None, "domains of every fold: a, b$"),
        (["sketch"], None, "no domain is measured by itself in every fold$"),
    ],
)
def test_the_domain_of_a_metric_is_one_of_the_data(domains, held_out, message):
    wanted = sweep(LODO if held_out else {}, folds={"held_out": held_out}, tune={"metric": "val/local.sketch"})
    (trial,) = draw(wanted).trials
    with pytest.raises(ConfigError, match=message):
        folds(wanted, trial, domains)
    assert folds(wanted, trial, [*domains, "d", "sketch"])


def test_a_metric_of_new_clients_can_select():
    assert draw(sweep(NEW, tune={"metric": "new_client/hm_adapted"})).objectives.name == "new_client/hm_adapted"


def test_the_metric_fits_the_protocol_and_test_is_possible():
    assert draw(sweep(LODO)).objectives.name == "val/local"
    assert draw(sweep(LODO, tune={"metric": "test/held_out"})).objectives.name == "test/held_out"
    assert draw(sweep(tune={"metric": "train/loss", "mode": "min"})).objectives.name == "train/loss"


def test_folds_are_seeds_times_domains():
    def of(domains=("a", "b"), base=LODO, **given):
        wanted = sweep(base, folds=given)
        return folds(wanted, draw(wanted).trials[0], domains)

    assert of(base={"seed": 4}) == (Fold(4),)
    assert of(base=BASE, seeds=[1, 2]) == (Fold(1), Fold(2))
    assert of(seeds=[1, 2]) == (Fold(1, "a"), Fold(1, "b"), Fold(2, "a"), Fold(2, "b"))
    assert of(held_out=["b"]) == (Fold(1, "b"),)
    assert of(domains=None) == (Fold(1, "all"),)
    with pytest.raises(ConfigError, match=r"no domain x in the data \(known: a, b\)"):
        of(held_out=["a", "x"])


def test_a_fold_is_the_experiment_with_its_seed_and_domain():
    (trial,) = draw(sweep(LODO)).trials
    run = trial.fold(Fold(3, "dotted"))
    assert (run.seed, run.protocol.held_out, run.method) == (3, "dotted", trial.experiment.method)
