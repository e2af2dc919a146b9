"""Decide where the work of an experiment runs if `resources.backend` is auto: on Ray actors, or in one process."""

from collections.abc import Sequence
from dataclasses import replace

from fedpgp import methods
from fedpgp.config import Experiment, ResourceSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.experiments import features
from fedpgp.experiments.planning import Plan
from fedpgp.federation.backends.choice import Choice, choose
from fedpgp.federation.cohorts import block_size
from fedpgp.methods.base import Method


def before_planning(experiment: Experiment, method: Method) -> Choice:
    """The choice as far as the settings tell. Ray is final; the plan may show that there is more work than known now.

    Clients that the data determine, and images that have no features yet, are not known.
    """
    clients = experiment.partition.clients or 1
    fewest = min(clients.values()) if isinstance(clients, dict) else clients
    return choose(experiment.resources, _blocks(experiment, method, fewest))


def of_run(plan: Plan, callback: RunCallback) -> Plan:
    """Fill in the backend of a run of this process, and tell the callback of a choice."""
    return _on(plan, max(_blocks_of(plan), features.missing_chunks([plan])), callback)


def of_extraction(plan: Plan, callback: RunCallback) -> Plan:
    """As `of_run`, if nothing but the features is needed."""
    return _on(plan, features.missing_chunks([plan]), callback)


def of_trial(plans: Sequence[Plan]) -> list[Plan]:
    """Fill in the backend of the folds of a trial, whose features are extracted before."""
    parallel = max(map(_blocks_of, plans))
    return [_on(plan, parallel, RunCallback(), in_trial=True) for plan in plans]


def in_trial(experiment: Experiment, clients: int) -> ResourceSettings:
    """The resources of a trial with so many clients, without its plan."""
    method = methods.create(experiment.method.name, experiment.method.settings)
    return choose(experiment.resources, _blocks(experiment, method, clients), in_trial=True).resources


def placed(experiment: Experiment, choice: Choice, callback: RunCallback) -> Experiment:
    """Fill in a choice, and tell the callback of it."""
    if choice.line:
        callback.on_message(choice.line)
    return experiment.model_copy(update={"resources": choice.resources})


def _on(plan: Plan, parallel: int, callback: RunCallback, in_trial: bool = False) -> Plan:
    choice = choose(plan.experiment.resources, parallel, in_trial)
    return replace(plan, experiment=placed(plan.experiment, choice, callback))


def _blocks_of(plan: Plan) -> int:
    return _blocks(plan.experiment, plan.method, plan.data.num_clients)


def _blocks(experiment: Experiment, method: Method, clients: int) -> int:
    """How many blocks of clients can train or be tested at the same time; a method that trains nothing has one."""
    return -(-clients // block_size(method, experiment.federation)) if method.phases else 1
