"""Differential privacy before work: checks it against the rest of an experiment, and fits the noise to the budget."""

from typing import Any

from fedpgp.config import Experiment, FederationSettings, PrivacySettings
from fedpgp.core.errors import ConfigError
from fedpgp.federation import rule_needs
from fedpgp.federation.accountant import Accountant
from fedpgp.federation.cohorts import participants
from fedpgp.federation.privacy import Mechanism
from fedpgp.methods.base import Method
from fedpgp.server_rules.base import ClientHalf, ServerRule

DELTA_EXPONENT = -1.1
"""Of delta = K^-1.1, less than the 1 / K that would allow to publish one client of K (McMahan et al., ICLR 2018)."""


def check_fit(experiment: Experiment, method: Method, rule: ServerRule) -> None:
    """Raise `ConfigError` if the settings, the method or the rule leave the guarantee undefined or void."""
    privacy, federation = experiment.privacy, experiment.federation
    if privacy.level == "none":
        return
    name, other = rule_needs.named(rule, federation), rule_needs.instead(rule, federation, "a rule that uses the mean")
    if rule.uploads == "stack":
        raise ConfigError(f"privacy: {name} needs every update: its sensitivity is unknown; give {other}")
    if isinstance(rule, ClientHalf):
        raise ConfigError(f"privacy: with {name} clients send more than their update; give {other}")
    if not (method.shared_keys and method.phases):
        raise ConfigError(f"privacy: method {method.name} shares nothing that needs it; give privacy.level=none")
    if privacy.accounting not in (None, federation.sampling):
        raise ConfigError(
            f"privacy.accounting={privacy.accounting} differs from federation.sampling={federation.sampling}: "
            "epsilon would be that of another run"
        )
    if federation.everyone_first and federation.participation < 1:
        raise ConfigError("privacy: federation.everyone_first is not the sampling that the accountant assumes")
    if federation.max_update_norm is not None:
        raise ConfigError("privacy: clip_norm limits updates; give federation.max_update_norm=null")
    if privacy.where == "client" and federation.dropout:
        raise ConfigError(
            "privacy.where=client: a lost client (federation.dropout) would take its part of the noise with it; "
            "give where=server"
        )
    if privacy.where == "client" and federation.sampling == "poisson" and federation.participation < 1:
        raise ConfigError(
            "privacy.where=client: a round with fewer clients than expected (federation.sampling=poisson) would have "
            "too little noise; give where=server or sampling=fixed"
        )


def mechanism(experiment: Experiment, clients: int) -> Mechanism | None:
    """What is done to the updates of a run with this number of clients; None: nothing.

    Raises `ConfigError` if the rounds do not fit into the budget.
    """
    privacy, federation = experiment.privacy, experiment.federation
    if privacy.level == "none":
        return None
    if clients == 1:
        raise ConfigError("privacy.level=client hides one client among others, and there is only one")
    if privacy.delta is not None and privacy.delta >= 1 / clients:
        raise ConfigError(
            f"privacy.delta={privacy.delta:g}: it must be less than 1 / clients, {1 / clients:g}: "
            "a larger one would allow to publish a client"
        )
    q = federation.participation
    expected = q * clients if federation.sampling == "poisson" else participants(clients, q)
    delta = clients**DELTA_EXPONENT if privacy.delta is None else privacy.delta
    accountant = Accountant(federation.sampling, clients, expected, delta)
    noise = _noise(accountant, privacy, federation.rounds)
    return Mechanism(privacy.clip_norm, noise, privacy.adaptive_clip, privacy.where, accountant)


def _noise(accountant: Accountant, privacy: PrivacySettings, rounds: int) -> float:
    """The given noise multiplier, if the rounds fit into a budget with it, or else the least one of the budget."""
    noise, epsilon = privacy.noise_multiplier or 0.0, privacy.epsilon
    if epsilon is None:
        return noise
    if privacy.noise_multiplier is None:
        return accountant.least_noise(epsilon, rounds)
    if (spent := accountant.epsilon(noise, rounds)) > epsilon:
        most = accountant.most_rounds(noise, epsilon, rounds)
        fit = f"rounds={most} would fit" if most else "not one round fits"
        raise ConfigError(
            f"privacy.epsilon={epsilon:g}: federation.rounds={rounds} with noise_multiplier={noise:g} spends "
            f"{spent:.4g}; {fit}; give more noise or noise_multiplier=null"
        )
    return noise


def describe(found: Mechanism, federation: FederationSettings) -> str:
    """The guarantee of the whole run, in one line."""
    accountant, rounds = found.accountant, federation.rounds
    epsilon = accountant.epsilon(found.noise_multiplier, rounds)
    guarantee = f"epsilon {epsilon:.4g} at delta {accountant.delta:.3g}" if found.noise_multiplier else "no guarantee"
    clip = f"clip norm {found.clip_norm:g}{', adaptive' if found.adaptive_clip else ''}"
    return (
        f"privacy: {guarantee} after {rounds} rounds ({accountant.neighbours}), noise multiplier "
        f"{found.noise_multiplier:g} by {found.where}, {clip}; every client counts alike"
    )


def record(found: Mechanism) -> dict[str, Any]:
    """What the identity of a run says: what has been computed from its settings."""
    accountant = found.accountant
    return {
        "noise_multiplier": found.noise_multiplier,
        "delta": accountant.delta,
        "participants": accountant.participants,
        "neighbours": accountant.neighbours,
    }
