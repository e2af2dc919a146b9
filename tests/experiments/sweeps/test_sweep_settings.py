"""Settings of sweeps: loading, overrides, and errors."""

from __future__ import annotations

import pytest
import yaml

from fedpgp import config
from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps import sweep_settings
from fedpgp.storage.objectives import Objectives

GRID = {"method.rank": {"grid_search": [1, 2]}, "method.mu": {"choice": [0.1, 0.5]}}
BOTH = ["val/local", "val/novel"]


def searched(**more):
    """A space of one term."""
    return {"space": {"method.mu": {"grid_search": [1], **more}}}


def write(folder, **tree):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"base": "shapes", **tree}))
    return str(path)


def test_a_sweep_is_loaded_and_dumped_without_changes(tmp_path):
    sweep, notes = sweep_settings.load(write(tmp_path, space=GRID, folds={"seeds": [1, 2]}, tune={"scheduler": "asha"}))
    assert (sweep.name, sweep.folds.seeds, sweep.tune.scheduler, notes) == ("mine", (1, 2), "asha", [])
    assert sweep.terms["method.rank"].values == (1, 2)
    assert sweep.base["data"]["name"] == "shapes"
    (tmp_path / "again.yaml").write_text(config.dump(sweep))
    assert sweep_settings.load(str(tmp_path / "again.yaml")) == (sweep, [])


def test_settings_of_the_base_dropped_by_a_new_name_are_reported(tmp_path, caplog):
    path = write(tmp_path, base={"data": {"name": "folder", "root": "/x"}})
    sweep_settings.load(path, ["data.name=shapes"])
    assert caplog.messages == [f"data.name=shapes: dropped root=/x of {path!r}"]


def test_an_experiment_is_a_sweep_of_one_trial():
    sweep, _ = sweep_settings.load("icons", ["federation.rounds=3"])
    assert (sweep.name, sweep.space, sweep.base["federation"]["rounds"]) == ("icons", {}, 3)


def test_a_base_is_found_relative_to_the_sweep(tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\n")
    sweep, _ = sweep_settings.load(write(tmp_path, base="own.yaml"))
    assert sweep.base == {"name": "own"}


@pytest.mark.parametrize("key", ["method.rank", "base.method.rank"])
def test_an_override_replaces_a_key_of_the_space_with_a_message(tmp_path, key):
    sweep, notes = sweep_settings.load(write(tmp_path, space=GRID), [f"{key}=3", "tune.max_concurrent=2", "name=other"])
    assert list(sweep.space) == ["method.mu"]
    assert (sweep.base["method"]["rank"], sweep.tune.max_concurrent, sweep.name) == (3, 2, "other")
    assert notes == ["space: method.rank was {'grid_search': [1, 2]}, is now method.rank=3"]


def test_fold_settings_cannot_be_overridden_in_the_base(tmp_path):
    assert sweep_settings.load(write(tmp_path), ["seed=7"])[0].base["seed"] == 7  # it is repeated over nothing
    for given in ({"folds": {"seeds": [1, 2]}}, {"folds": {"seeds": [1]}}):
        with pytest.raises(ConfigError, match=r"override seed: folds\.seeds overrides it; use folds\.seeds="):
            sweep_settings.load(write(tmp_path, **given), ["seed=7"])
    with pytest.raises(ConfigError, match=r"override protocol\.held_out: folds\.held_out overrides it"):
        sweep_settings.load(write(tmp_path), ["folds.held_out=all", "protocol.held_out=dotted"])


def test_an_override_can_be_a_term(tmp_path):
    sweep, notes = sweep_settings.load(
        write(tmp_path, space=GRID), ["method.rank={grid_search: [4, 8]}", "method.tau={choice: [1]}"]
    )
    assert sweep.terms["method.rank"].values == (4, 8)
    assert set(sweep.space) == {"method.rank", "method.mu", "method.tau"}
    assert len(notes) == 1


def test_an_override_inside_a_section_of_the_space(tmp_path):
    """The data's name replaces the grid over data sets; the number of views, which the grid does not set, does not."""
    data = {"grid_search": [{"name": "dtd", "root": "/dtd"}, {"name": "food101", "root": "/food"}]}
    file = write(tmp_path, space={"data": data})
    sweep, notes = sweep_settings.load(file, ["base.data.name=icons"])
    assert (sweep.space, sweep.base["data"]["name"], len(notes)) == ({}, "icons", 1)
    sweep, notes = sweep_settings.load(file, ["data.views=2"])
    assert (list(sweep.space), sweep.base["data"]["views"], notes) == (["data"], 2, [])


def test_an_override_replaces_a_key_of_variants_with_a_message(tmp_path):
    variants = {"CoOp": {"method.name": "coop", "federation.lr": 0.1}, "FedPGP": {}}
    sweep, notes = sweep_settings.load(write(tmp_path, variants=variants), ["federation.lr=0.3"])
    assert sweep.variants == {"CoOp": {"method.name": "coop"}, "FedPGP": {}}
    assert notes == ["variants: federation.lr of 'CoOp' is now federation.lr=0.3"]


def test_an_override_can_be_a_term_with_a_condition(tmp_path):
    path = write(tmp_path, space={"method.name": {"grid_search": ["promptfl", "fedpgp"]}, **GRID})
    given = "method.mu={grid_search: [1, 2], when: {method.name: fedpgp, method.rank: [1, 2]}}"
    sweep, notes = sweep_settings.load(path, [given, "backbone.name={grid_search: [a, b], when: {method.rank: 2}}"])
    assert sweep.terms["method.mu"].when == {"method.name": ("fedpgp",), "method.rank": (1, 2)}
    assert sweep.terms["backbone.name"].when == {"method.rank": (2,)}  # a number, although the name is text
    assert [note.partition(", is now")[0] for note in notes] == [f"space: method.mu was {GRID['method.mu']}"]
    fixed, _ = sweep_settings.load(path, [given, "method.rank=1"])
    assert list(fixed.terms) == ["method.name", "method.mu"]


def test_an_override_replaces_a_term_of_a_variant_and_keeps_its_others(tmp_path):
    own = {"method": {"name": "fedpgp", "mu": {"grid_search": [1]}, "tau": {"choice": [1]}}}
    path = write(tmp_path, variants={"A": own, "B": {}})
    sweep, notes = sweep_settings.load(path, ["method.mu=0.5"])
    assert sweep.variants == {"A": {"method.name": "fedpgp", "method.tau": {"choice": [1]}}, "B": {}}
    assert list(sweep.terms) == ["A: method.tau"]
    assert notes == ["variants: method.mu of 'A' is now method.mu=0.5"]
    assert sweep.fixed("A") == {"method.name": "fedpgp"}


def test_a_sweep_with_conditions_is_dumped_and_read_again(tmp_path):
    tree = {"variants": {"A": {"method.tau": {"choice": [1]}}}, **searched(when={"method.name": ["fedpgp", "coop"]})}
    sweep, _ = sweep_settings.load(write(tmp_path, folds={"splits": [1, 2]}, tune={"search": "random"}, **tree))
    (tmp_path / "again.yaml").write_text(config.dump(sweep))
    assert sweep_settings.load(str(tmp_path / "again.yaml"))[0] == sweep


def test_conditions_on_drawn_whole_numbers_can_hold(tmp_path):
    ranks = {"method.rank": {"randint": [1, 9]}}
    sweep_settings.load(write(tmp_path, space={**ranks, **searched(when={"method.rank": 4})["space"]}))
    with pytest.raises(ConfigError, match=r"no trial has method.rank=9"):
        sweep_settings.load(write(tmp_path, space={**ranks, **searched(when={"method.rank": 9})["space"]}))


def test_the_names_that_trials_have():
    names = {"grid_search": ["promptfl", "fedpgp"]}
    assert sweep_settings.Sweep(space={"method.name": names}).names("method") == {"promptfl", "fedpgp"}
    some = {**names, "when": {"protocol.shots": 4}}
    base = {"method": {"name": "coop"}}
    assert sweep_settings.Sweep(base=base, space={"method.name": some}).names("method") == {
        "promptfl",
        "fedpgp",
        "coop",
    }
    variants = {"A": {"method": {"name": "kgcoop"}}, "B": {"method.rank": 2}}
    assert sweep_settings.Sweep(variants=variants).names("method") == {"kgcoop", "fedpgp"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"spcae": {}}, "spcae: unknown key; did you mean space"),
        ({"tune": {"max_concurent": 2}}, "tune.max_concurent: unknown key; did you mean max_concurrent"),
        ({"tune": {"metric": "val/hmm"}}, "unknown metric; did you mean val/hm"),
        (
            {"tune": {"scheduler": "hyperbnd"}},
            "tune.scheduler: Input should be 'fifo', 'asha', 'hyperband' or 'median'",
        ),
        ({"tune": {"search": "rndom"}}, "tune.search: Input should be"),
        ({"tune": {"metric": ["val/local", "val/hmm"]}}, "tune.metric: unknown metric; did you mean val/hm"),
        ({"tune": {"metric": BOTH, "scheduler": "asha"}}, "tune: scheduler: asha compares trials by one metric"),
        ({"tune": {"metric": BOTH, "best": "val/hm"}}, "tune: best: 'val/hm' is no rule; write hm, or"),
        ({"tune": {"metric": BOTH, "mode": ["max"]}}, "tune: mode: give one for all metrics, or a list"),
        ({"tune": {"points_to_try": [{"method.rank": 1}]}}, "tune: points_to_try: only tune.search=optuna"),
        ({"folds": {"seeds": []}}, "folds.seeds"),
        ({"folds": {"seeds": [1, 1]}}, "folds.seeds: duplicate seed"),
        ({"folds": {"splits": [3, 1, 3]}}, r"mine.yaml: folds.splits: duplicate split \(\[3, 1, 3\]\)"),
        ({"folds": {"splits": []}}, "folds.splits"),
        (
            {"space": {"data.split_seed": {"grid_search": [1]}}},
            r"use folds.splits=\[1, 2, 3\]",
        ),
        (
            {"variants": {"a": {"data": {"split_seed": 2}}}},
            "data.split_seed cannot be searched over; use",
        ),
        ({"variants": {"a": {"seed": {"choice": [1]}}}}, "seed cannot be searched over; use folds.seeds"),
        ({"space": {"method.rank": {"grid_serch": [1]}}}, "unknown term 'grid_serch'; did you mean grid_search"),
        ({"space": {"method.rank": [1, 2]}}, "space: method.rank: write a term with its values"),
        ({"space": {"method.rank": {"grid_search": []}}}, "grid_search needs a list"),
        ({"space": {"method.mu": {"uniform": [1, 0]}}}, "uniform needs 2 numbers, the lower one first"),
        ({"space": {"method.mu": {"loguniform": [0, 1]}}}, "loguniform needs 2 numbers above 0"),
        ({"space": {"method.rank": {"randint": [1.5, 3]}}}, "randint needs 2 whole numbers"),
        ({"space": {"method.mu": {"sample_from": "lambda spec: 1"}}}, "text such as 'lambda spec: 1' is not executed"),
        ({"space": {"method.mu": {"grid_search": "tune.uniform(0, 1)"}}}, "is not executed"),
        ({"space": {"seed": {"grid_search": [1, 2]}}}, r"seed cannot be searched over; use folds.seeds"),
        (
            {"variants": {"a": {"protocol.held_out": "x"}}},
            r"protocol.held_out cannot be .* use folds.held_out=all",
        ),
        ({"space": GRID, "variants": {"a": {"method": {"mu": 1}}}}, "method.mu: set by both the space and a variant"),
        (
            {"space": GRID, "variants": {"a": {"method.mu": {"grid_search": [1]}}}},
            "method.mu: set by both the space and a variant",
        ),
        ({"variants": {"a": {"method.mu": {"uniform": [1, 0]}}}}, "variants: a: method.mu: uniform needs 2 numbers"),
        (searched(when={"method.name": "promptfl"}), "when: no trial has method.name=promptfl; name other values, or"),
        (
            {**searched(when={"method.name": "coop", "method.rank": 3}), "variants": {"a": {"method.name": "coop"}}},
            "mine.yaml: space: method.mu: when: no trial has method.name=coop and method.rank=3",
        ),
        (
            {"space": {**GRID, "method.tau": {"grid_search": [1], "when": {"method.rank": [3, 4]}}}},
            "space: method.tau: when: no trial has method.rank=3 or 4;",
        ),
        (
            searched(when={"method.nme": "fedpgp"}),
            r"when: no setting method.nme; did you mean method.name\?",
        ),
        (searched(when={"method.rnk": 1}), r"when: no setting method.rnk; did you mean method.rank\?"),
        (searched(when={"seed": 1}), "when: seed differs between the folds of a trial; name another setting"),
        (searched(when={"data.split_seed": 1}), "when: data.split_seed differs between the folds"),
        (
            searched(when={"method.mu": 1}),
            r"method.mu: the conditions \(when\) refer to each other or to",
        ),
        ({"base": {"resources": None}}, r"base: resources: must be a mapping of settings \(given: None\)"),
        ({"base": 3}, "base: give a shipped experiment, a path or a mapping"),
        ({"base": "nothing"}, "nothing: no such file, and no shipped experiment"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, tree, message):
    with pytest.raises(ConfigError, match=message):
        sweep_settings.load(write(tmp_path, **tree))


@pytest.mark.parametrize("mode", ["max", ["max", "max"]])
def test_two_metrics_with_one_mode_or_one_for_each(tmp_path, mode):
    sweep, _ = sweep_settings.load(write(tmp_path), ["tune.metric=[val/local,val/novel]", f"tune.mode={mode}"])
    assert sweep.tune.objectives("") == Objectives(tuple(BOTH), ("max", "max"))


def test_code_in_yaml_is_refused(tmp_path):
    for code in ("!!python/object/apply:os.system [echo]", "!!python/name:os.system"):
        (tmp_path / "mine.yaml").write_text(f"base: shapes\nspace:\n  method.rank: {code}\n")
        with pytest.raises(ConfigError, match="not readable as YAML: could not determine a constructor"):
            sweep_settings.load(str(tmp_path / "mine.yaml"))


def test_a_space_without_a_base_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("space: {}\n")
    with pytest.raises(ConfigError, match="has space but no base; add base: EXPERIMENT"):
        sweep_settings.load(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match="nothing: no such file, and no shipped sweep or experiment"):
        sweep_settings.load("nothing")


def test_leave_one_domain_out_changes_protocol_and_partition():
    sweep = sweep_settings.leave_one_domain_out(sweep_settings.load("icons")[0])
    assert sweep.folds.held_out == "all"
    assert sweep.base["protocol"]["name"] == "leave_one_domain_out"
    assert sweep.base["partition"] == {"scheme": "domain", "clients": None}
    assert config.parse(sweep.base).protocol.shots == 16
    assert sweep_settings.leave_one_domain_out(sweep) == sweep
    kept = {"scheme": "domain", "clients": None, "clients_per_domain": 2}
    base = {"partition": kept, "protocol": {"name": "leave_one_domain_out", "held_out": "dotted"}}
    sweep = sweep_settings.leave_one_domain_out(sweep_settings.Sweep(base=base))
    assert (sweep.base["partition"], sweep.folds.held_out) == (kept, ("dotted",))


@pytest.mark.parametrize("protocol", [{}, {"name": "cross_data", "source": "icons"}])
def test_of_a_union_each_data_set_is_held_out(protocol):
    """It was made a run that leaves a domain out, which a union refuses."""
    base = {"data": {"name": "union", "parts": [{"name": "icons"}, {"name": "shapes"}]}, "partition": {"clients": 2}}
    sweep = sweep_settings.leave_one_domain_out(sweep_settings.Sweep(base={**base, "protocol": protocol}))
    assert sweep.folds.held_out == "all"
    assert sweep.base["protocol"] == {"name": "cross_data", "held_out": "all"}
    assert sweep.base["partition"] == {"clients": 2}
    config.parse(sweep.base)


@pytest.mark.parametrize("path", sorted(config.shipped_configs().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path):
    sweep, notes = sweep_settings.load(path.stem)
    assert (sweep.name, notes) == (path.stem, [])
