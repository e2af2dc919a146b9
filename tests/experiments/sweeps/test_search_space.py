"""Terms, their conditions and their order; the points that they span are in test_conditional_trials.py."""

from __future__ import annotations

import pytest

from fedpgp.core.errors import ConfigError
from fedpgp.experiments.sweeps.search_space import ABSENT, Term, expand, is_term, ordered, parse_term, setting


def grid(key, *values, variant=None, **when):
    return Term("grid_search", values, key, {name.replace("_", ".", 1): own for name, own in when.items()}, variant)


def test_a_condition_is_a_value_or_a_list_of_values_by_key():
    plain = parse_term("method.mu", {"uniform": [0, 1], "when": {"method.name": "fedpgp", "method.rank": [1, 2]}})
    assert plain.when == {"method.name": ("fedpgp",), "method.rank": (1, 2)}
    nested = parse_term("method.mu", {"when": {"method": {"name": "fedpgp", "rank": [1, 2]}}, "uniform": [0, 1]})
    assert nested == plain
    assert parse_term("method.mu", {"uniform": [0, 1]}).when == {}
    assert parse_term("federation.attack", {"choice": [1], "when": {"method.ctx_init": None}}).when == {
        "method.ctx_init": (None,)
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"grid_search": [1], "whn": {}}, r"space: method.mu: unknown key 'whn'; did you mean when\?"),
        ({"when": {"method.name": "fedpgp"}}, "space: method.mu: write a term with its values"),
        ({"grid_search": [1], "when": {}}, "space: method.mu: when needs settings with their values"),
        ({"grid_search": [1], "when": "method.name"}, "given: 'method.name'"),
        ({"grid_serch": [1], "when": {"method.name": "fedpgp"}}, "unknown term 'grid_serch'; did you mean grid_search"),
    ],
)
def test_what_is_no_condition_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        parse_term("method.mu", value)


def test_a_term_of_a_variant_names_it():
    term = parse_term("method.mu", {"grid_search": [1]}, "FedPGP")
    assert (term.name, term.where) == ("FedPGP: method.mu", "variants: FedPGP: method.mu")
    with pytest.raises(ConfigError, match=r"^variants: FedPGP: method\.mu: grid_search needs a list"):
        parse_term("method.mu", {"grid_search": []}, "FedPGP")


@pytest.mark.parametrize(
    ("value", "looks"),
    [
        ({"grid_search": [1]}, True), ({"grid_serch": [1]}, True), ({"choice": [1], "when": {"a": 1}}, True),
        ({"name": "fedpgp"}, False), ({"name": "trimmed_mean", "trim": 0.2}, False), ([1], False), ({}, False),
    ],
)  # fmt: skip
def test_what_looks_like_a_term(value, looks):
    assert is_term(value) == looks


def test_a_term_comes_after_those_that_its_condition_refers_to():
    mu, rank, name = grid("method.mu", 1, method_name=("a",)), grid("method.rank", 1), grid("method.name", "a", "b")
    assert ordered([rank, name]) == [rank, name]
    assert ordered([mu, rank, name]) == [rank, name, mu]
    tau = grid("method.tau", 1, method_mu=(1,))
    assert ordered([tau, mu, rank, name]) == [rank, name, mu, tau]
    section = Term("grid_search", ({"name": "a"}, {"name": "b"}), "method")
    assert ordered([mu, section]) == [section, mu]
    by_length = grid("protocol.shots", 4, method_n_ctx=(4,))  # another method can have another length
    assert ordered([by_length, name]) == [name, by_length]


def test_random_terms_come_after_grids_as_far_as_conditions_allow():
    rate, rank = Term("uniform", (0.0, 1.0), "federation.lr"), grid("method.rank", 1)
    assert ordered([rate, rank], grids_first=True) == [rank, rate]
    chosen = Term("choice", ("a", "b"), "method.name")
    mu = grid("method.mu", 1, method_name=("a",))
    assert ordered([mu, rate, chosen, rank], grids_first=True) == [rank, rate, chosen, mu]


@pytest.mark.parametrize(
    "terms",
    [
        [grid("method.mu", 1, method_mu=(1,))],
        [grid("method.mu", 1, method_tau=(1,)), grid("method.tau", 1, method_mu=(1,))],
    ],
)
def test_conditions_that_refer_to_each_other_are_refused(terms):
    with pytest.raises(ConfigError, match=r"^space: method.mu.*: the conditions \(when\) refer to each other or"):
        ordered(terms)


def test_terms_of_different_variants_do_not_depend_on_each_other():
    mu = grid("method.mu", 1, variant="A", method_tau=(1,))
    tau = grid("method.tau", 1, variant="B", method_mu=(1,))
    assert ordered([mu, tau]) == [mu, tau]


def test_points_of_terms_of_which_one_depends_on_another():
    a, b, c = grid("a", 1, 2), grid("b", "x", "y"), grid("c", 0)
    found = expand([a, b, c], lambda term, point: term.key != "b" or point["a"] == 2, lambda term, point: term.values)
    assert list(found) == [{"a": 1, "c": 0}, {"a": 2, "b": "x", "c": 0}, {"a": 2, "b": "y", "c": 0}]


def test_a_condition_sees_given_settings_and_defaults():
    tree = {"method": {"name": "fedpgp", "rank": 2}, "federation": {"server": {"name": "trimmed_mean"}}}
    assert setting(tree, "method.rank") == 2
    assert setting(tree, "method.n_ctx") == 16  # FedPGP's default
    assert setting(tree, "protocol.name") == "base_to_novel"
    assert setting(tree, "federation.server.trim") == 0.1
    assert setting({}, "method.name") == "fedpgp"
    assert setting({"method": {"name": "zero_shot"}}, "method.rank") is ABSENT
    assert setting(tree, "federation.nothing") is ABSENT


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({"method.rank": (2, 3)}, True),
        ({"method.rank": (2.0,)}, True),
        ({"method.rank": (True,)}, False),
        ({"method.rank": (3,), "method.name": ("fedpgp",)}, False),
        ({"method.rank": (2,), "method.name": ("fedpgp",)}, True),
        ({"method.ctx_init": (None,)}, True),
        ({"method.radius": (None,)}, False),
    ],
)
def test_all_keys_of_a_condition_must_hold(wanted, holds):
    term = Term("grid_search", (1,), "federation.lr", wanted)
    assert term.holds({"method": {"name": "fedpgp", "rank": 2}}) == holds
