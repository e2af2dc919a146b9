"""Trials of spaces with conditions, of variants with terms of their own, of random search and of several splits."""

from __future__ import annotations

import hashlib
import json

import pytest

from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps import sweep_settings
from fedpgp.experiments.sweeps.sampling import check_splits, digest, draw, folds
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.sweep_folder import Fold, TrialSpec

BASE = {"method": {"name": "fedpgp", "n_ctx": 4}}
NAMES = {"grid_search": ["promptfl", "fedpgp"]}
OF_FEDPGP = {"method.name": "fedpgp"}


def sweep(base=BASE, **tree):
    found, _ = sweep_settings.load({"base": base, **tree})
    return found


def settings(drawn):
    return [dict(trial.settings) for trial in drawn.trials]


def labels(drawn):
    return [trial.label for trial in drawn.trials]


def test_a_key_for_one_method_gives_the_others_one_trial():
    space = {"method.name": NAMES, "method.mu": {"grid_search": [0.1, 1.0], "when": OF_FEDPGP}}
    drawn = draw(sweep(space=space))
    assert settings(drawn) == [
        {"method.name": "promptfl"},
        {"method.name": "fedpgp", "method.mu": 0.1},
        {"method.name": "fedpgp", "method.mu": 1.0},
    ]
    assert labels(drawn) == ["name=promptfl", "name=fedpgp, mu=0.1", "name=fedpgp, mu=1"]
    assert drawn.repeated == 0
    assert [trial.experiment.method.settings["n_ctx"] for trial in drawn.trials] == [4, 4, 4]  # carried over


def test_the_order_in_the_file_does_not_matter_and_other_keys_are_crossed():
    space = {
        "method.mu": {"grid_search": [0.1, 1.0], "when": OF_FEDPGP},
        "method.name": NAMES,
        "protocol.shots": {"grid_search": [4, 16]},
    }
    assert labels(draw(sweep(space=space))) == [
        "name=promptfl, shots=4",
        "name=promptfl, shots=16",
        *(f"name=fedpgp, mu={mu}, shots={shots}" for mu in ("0.1", "1") for shots in (4, 16)),
    ]


def test_conditions_of_conditions_and_several_keys():
    space = {
        "method.name": NAMES,
        "method.rank": {"grid_search": [1, 2], "when": OF_FEDPGP},
        "method.mu": {"grid_search": [0.1, 1.0], "when": {**OF_FEDPGP, "method.rank": 2}},
    }
    assert labels(draw(sweep(space=space))) == [
        "name=promptfl", "name=fedpgp, rank=1", "name=fedpgp, rank=2, mu=0.1", "name=fedpgp, rank=2, mu=1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "when", "applies"),
    [
        (BASE, {"method.name": ["promptfl", "fedpgp"]}, True),
        (BASE, {"protocol.name": "base_to_novel"}, True),  # a default
        (BASE, {"method.rank": 8}, True),  # a default of the method
        ({**BASE, "seed": 2, "federation": {"rounds": 3}}, {"federation.rounds": [3, 5]}, True),
        ({"federation": {"server": {"name": "trimmed_mean"}}}, {"federation.server.trim": 0.1}, True),
    ],
)
def test_a_condition_on_the_base(base, when, applies):
    found = draw(sweep(base, space={"method.mu": {"grid_search": [0.1, 1.0], "when": when}}))
    assert [trial.settings for trial in found.trials] == [{"method.mu": 0.1}, {"method.mu": 1.0}]


def test_a_condition_on_a_method_of_a_variant():
    variants = {"PromptFL": {"method.name": "promptfl"}, "FedPGP": {}}
    drawn = draw(sweep(variants=variants, space={"method.mu": {"grid_search": [0.1, 1.0], "when": OF_FEDPGP}}))
    assert labels(drawn) == ["PromptFL", "FedPGP, mu=0.1", "FedPGP, mu=1"]
    assert settings(drawn) == [{"method.name": "promptfl"}, {"method.mu": 0.1}, {"method.mu": 1.0}]


def test_a_condition_on_a_method_of_a_section():
    methods = [{"name": "promptfl"}, {"name": "fedpgp", "rank": 2}]
    space = {"method": {"grid_search": methods}, "method.mu": {"grid_search": [0.1, 1.0], "when": OF_FEDPGP}}
    drawn = draw(sweep(space=space))
    assert labels(drawn) == ["method=promptfl", "method=fedpgp, mu=0.1", "method=fedpgp, mu=1"]
    assert [trial.experiment.method.settings.get("rank") for trial in drawn.trials] == [None, 2, 2]


def test_a_condition_on_a_server_rule():
    space = {
        "federation.server.name": {"grid_search": ["mean", "trimmed_mean"]},
        "federation.server.trim": {"grid_search": [0.1, 0.2], "when": {"federation.server.name": "trimmed_mean"}},
    }
    assert labels(draw(sweep(space=space))) == [
        "name=mean",
        "name=trimmed_mean, trim=0.1",
        "name=trimmed_mean, trim=0.2",
    ]


def test_variants_have_terms_of_their_own():
    variants = {
        "PromptFL": {"method.name": "promptfl", "federation.lr": {"grid_search": [0.1, 0.3]}},
        "FedPGP": {"method": {"name": "fedpgp", "mu": {"grid_search": [0.1, 1.0]}, "rank": 2}},
        "zero-shot": {"method.name": "zero_shot"},
    }
    drawn = draw(sweep(variants=variants, space={"protocol.shots": {"grid_search": [4, 16]}}))
    assert labels(drawn) == [
        *(f"PromptFL, shots={shots}, lr={lr}" for shots in (4, 16) for lr in (0.1, 0.3)),
        *(f"FedPGP, shots={shots}, mu={mu}" for shots in (4, 16) for mu in ("0.1", "1")),
        *(f"zero-shot, shots={shots}" for shots in (4, 16)),
    ]
    first = {"method.name": "fedpgp", "method.rank": 2, "protocol.shots": 4, "method.mu": 0.1}
    assert settings(drawn)[4] == first
    assert {trial.variant for trial in drawn.trials} == set(variants)


def test_two_variants_have_the_same_key_with_other_values():
    variants = {
        "PromptFL": {"method.name": "promptfl", "federation.lr": {"grid_search": [0.1]}},
        "FedPGP": {"federation.lr": {"uniform": [0.5, 0.6]}},
    }
    one, two = draw(sweep(variants=variants)).trials
    assert one.settings == {"method.name": "promptfl", "federation.lr": 0.1}
    assert 0.5 <= two.settings["federation.lr"] < 0.6
    alone = {"FedPGP": variants["FedPGP"]}
    assert settings(draw(sweep(variants=alone))) == [two.settings]  # a value does not depend on other variants


def test_random_values_apply_where_their_condition_holds():
    space = {
        "method.name": {"choice": ["promptfl", "fedpgp"]},
        "method.mu": {"grid_search": [0.1, 1.0], "when": OF_FEDPGP},
        "method.tau": {"uniform": [0.1, 0.9], "when": OF_FEDPGP},
    }
    drawn = draw(sweep(space=space, tune={"num_samples": 6}))
    of_fedpgp = [one for one in settings(drawn) if one["method.name"] == "fedpgp"]
    others = [one for one in settings(drawn) if one["method.name"] == "promptfl"]
    assert others == [{"method.name": "promptfl"}]  # drawn several times, once kept
    assert [one["method.mu"] for one in of_fedpgp] == [0.1, 1.0] * (len(of_fedpgp) // 2)
    assert len({one["method.tau"] for one in of_fedpgp}) == len(of_fedpgp) >= 2
    assert len(of_fedpgp) // 2 + 1 + drawn.repeated == 6


def test_a_condition_on_another_key_changes_no_drawn_value():
    plain = {"method.rank": {"grid_search": [1, 2]}, "method.mu": {"uniform": [0.1, 1.0]}}
    before = settings(draw(sweep(space=plain)))
    when = {**plain, "method.mu": {"uniform": [0.1, 1.0], "when": {"method.rank": 2}}}
    assert settings(draw(sweep(space=when))) == [{"method.rank": 1}, before[1]]


def test_random_search_draws_every_term():
    space = {
        "method.name": NAMES,
        "method.mu": {"grid_search": [0.1, 0.5, 1.0], "when": OF_FEDPGP},
        "federation.lr": {"loguniform": [0.01, 1.0]},
    }
    tune = {"search": "random", "num_samples": 12}
    drawn = draw(sweep(space=space, tune=tune))
    assert len(drawn.trials) == 12
    names = [one["method.name"] for one in settings(drawn)]
    assert {"promptfl", "fedpgp"} == set(names)
    assert all(("method.mu" in one) == (one["method.name"] == "fedpgp") for one in settings(drawn))
    assert len({one["federation.lr"] for one in settings(drawn)}) == 12
    assert settings(draw(sweep(space=space, tune=tune))) == settings(drawn)
    assert settings(draw(sweep(space=space, tune={**tune, "num_samples": 5}))) == settings(drawn)[:5]
    assert settings(draw(sweep(space=space, tune={**tune, "seed": 2}))) != settings(drawn)


def test_random_search_draws_the_variant():
    variants = {"PromptFL": {"method.name": "promptfl"}, "FedPGP": {"method.mu": {"uniform": [0.1, 1.0]}}}
    space = {"federation.lr": {"uniform": [0.1, 0.3]}}
    drawn = draw(sweep(variants=variants, space=space, tune={"search": "random", "num_samples": 8}))
    assert len(drawn.trials) == 8
    assert {trial.variant for trial in drawn.trials} == {"PromptFL", "FedPGP"}
    assert all(("method.mu" in trial.settings) == (trial.variant == "FedPGP") for trial in drawn.trials)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"space": {"method.name": NAMES, "method.mu": {"grid_search": [0.1, 1]}}},
            r"^space: method.mu: method.name=promptfl has no mu; give the term a condition, when: {method.name: "
            r"\[fedpgp\]}  \[2 of 4 trials: name=promptfl, mu=0.1; name=promptfl, mu=1\]$",
        ),
        (
            {"variants": {"a": {"method.name": "zero_shot"}, "b": {}}, "space": {"method.rank": {"grid_search": [1]}}},
            r"^space: method.rank: method.name=zero_shot has no rank; .*when: {method.name: \[fedpgp\]}  \[1 of 2",
        ),
        (
            {
                "space": {
                    "federation.server.name": {"grid_search": ["mean", "trimmed_mean"]},
                    "federation.server.trim": {"grid_search": [0.1]},
                }
            },
            r"^space: federation.server.trim: federation.server.name=mean has no trim; .* \[trimmed_mean\]}",
        ),
        (
            {"space": {"method.name": {"grid_search": ["promptfl", "coop"]}, "method.mu": {"grid_search": [1]}}},
            "^method promptfl: mu: unknown key",  # FedPGP, of the base, is not searched
        ),
        (
            {"space": {"resources.actors": {"grid_search": [1, 2]}}},
            "^space: the 2 trials are all the same, because resources.actors does not change what is computed",
        ),
        (
            {"tune": {"num_samples": 3}},
            r"^the 3 trials of this sweep are all the same \(tune.num_samples=3\)",
        ),
        (
            {"variants": {"a": {}, "b": {"method.n_ctx": 4}}},
            "are all the same, because method.n_ctx does not",
        ),
    ],
)
def test_spaces_that_need_a_condition_or_repeat_one_trial_are_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        draw(sweep(**tree))


@pytest.mark.parametrize(
    ("base", "tune", "message"),
    [
        ({"method": {"name": "zero_shot"}}, {"metric": "train/loss", "mode": "min"}, "method zero_shot does not train"),
        ({"method": {"name": "pfedpt"}}, {"metric": "val/novel"}, "method pfedpt only knows the classes that it was"),
        ({}, {"metric": "val/local_global"}, "federation.evaluate_global is false; use another metric$"),
        ({}, {"metric": "val/local_before_aggregation"}, "federation.evaluate_before_aggregation is false"),
    ],
)
def test_a_metric_that_no_trial_records_is_refused(base, tune, message):
    with pytest.raises(ConfigError, match=f"^tune.metric: {tune['metric']} is not measured, because {message}"):
        draw(sweep(base, tune=tune))


def test_a_metric_that_some_trials_record_is_noted():
    variants = {"pFedPT": {"method.name": "pfedpt"}, "FedPGP": {}}
    drawn = draw(sweep(variants=variants))
    assert drawn.objectives.metrics == ("val/hm",)
    assert drawn.unranked == (
        "tune.metric: val/hm is not measured, and so not ranked, for pFedPT (method pfedpt only knows the classes that "
        "it was trained on)"
    )
    assert draw(sweep({"method": {"name": "pfedpt"}})).objectives.metrics == ("val/local",)
    assert draw(sweep(variants=variants, tune={"metric": "val/local"})).unranked == ""


def test_folds_are_seeds_times_splits_times_domains():
    wanted = sweep(folds={"seeds": [1, 2], "splits": [3, 4]})
    (trial,) = draw(wanted).trials
    found = folds(wanted, trial, None)
    assert found == (Fold(1, None, 3), Fold(1, None, 4), Fold(2, None, 3), Fold(2, None, 4))
    assert [str(fold) for fold in found[:2]] == ["seed 1, split 3", "seed 1, split 4"]
    assert str(Fold(1, "ink", 3)) == "seed 1, split 3, held out ink"
    runs = [trial.fold(fold) for fold in found]
    assert [(run.seed, run.data.split_seed) for run in runs] == [(1, 3), (1, 4), (2, 3), (2, 4)]


def test_a_split_of_a_union_is_that_of_every_part():
    data = {"name": "union", "parts": [{"name": "shapes"}, {"name": "shapes", "title": "more", "split_seed": 7}]}
    wanted = sweep({**BASE, "data": data}, folds={"splits": [3]})
    (trial,) = draw(wanted).trials
    (fold,) = folds(wanted, trial, None)
    assert [part.split_seed for part in trial.fold(fold).data.members] == [3, 3]
    assert [part.title_or_name for part in trial.fold(fold).data.members] == ["shapes", "more"]


def test_ids_do_not_depend_on_splits_that_are_folds():
    def only(split=1, **tree):
        (trial,) = draw(sweep({**BASE, "data": {"name": "shapes", "split_seed": split}}, **tree)).trials
        return trial.id

    assert only(1) != only(2)  # as before there were such folds
    assert only(2, folds={"splits": [5, 6]}) == only(3, folds={"splits": [1]}) == only(1)


def test_splits_are_part_of_a_sweeps_identity():
    def of(*splits):
        planned = [TrialSpec("t", "t", {}, tuple(Fold(1, None, split) for split in splits))]
        return digest(sweep_settings.Sweep(), Objectives(("val/hm",)), planned)

    assert len({of(None), of(1), of(1, 2)}) == 3


def test_data_with_a_split_of_their_own_have_no_other():
    wanted = sweep(folds={"seeds": [1, 2], "splits": [1, 2]})
    (trial,) = draw(wanted).trials
    found = folds(wanted, trial, None)
    check_splits(trial, {fold: f"digest {fold.split}" for fold in found})
    with pytest.raises(ConfigError, match=r"^folds.splits: 1 and 2 are the same split of data icons, which have a spl"):
        check_splits(trial, dict.fromkeys(found, "digest"))


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("rank_mu_tau_shots", 36, "58629350f7d3"), ("all_methods", 18, "cf9d1c3a7d16"), ("privacy", 12, "dc50133662a3")],
)
def test_trials_of_sweeps_without_conditions_are_those_before_there_were_any(name, count, expected):
    """So that results on disk are found again: ids, labels and settings as they were."""
    trials = draw(sweep_settings.load(name)[0]).trials
    about = json.dumps([[trial.id, trial.label, dict(trial.settings)] for trial in trials], sort_keys=True)
    assert (len(trials), hashlib.sha256(about.encode()).hexdigest()[:12]) == (count, expected)


def test_drawn_values_without_conditions_are_those_before_there_were_any():
    space = {
        "method.mu": {"uniform": [0.1, 1.0]},
        "protocol.shots": {"grid_search": [4, 16]},
        "federation.lr": {"loguniform": [0.001, 1.0]},
        "method.n_ctx": {"choice": [4, 8]},
    }
    variants = {"A": {"method.rank": 1}, "B": {"federation.rounds": 2}}
    drawn = draw(sweep(variants=variants, space=space, tune={"num_samples": 2}))
    assert [(trial.id, trial.label) for trial in drawn.trials] == [
        ("c29236f142bf", "A, mu=0.454, shots=4, lr=0.118, n_ctx=8"),
        ("0ac19b9caf32", "A, mu=0.728, shots=16, lr=0.498, n_ctx=8"),
        ("d9017eb8890a", "B, mu=0.875, shots=4, lr=0.0142, n_ctx=8"),
        ("8d946668a2d3", "B, mu=0.113, shots=16, lr=0.0153, n_ctx=4"),
        ("f1cd80a1e440", "A, mu=0.498, shots=4, lr=0.0165, n_ctx=4"),
        ("e718b4d08db2", "A, mu=0.629, shots=16, lr=0.533, n_ctx=8"),
        ("ce305bdaf815", "B, mu=0.731, shots=4, lr=0.00663, n_ctx=8"),
        ("6fae3f0f6e26", "B, mu=0.334, shots=16, lr=0.0298, n_ctx=8"),
    ]
