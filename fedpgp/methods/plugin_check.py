"""Checks of methods from outside the package: their members, and a dry call on random features before any work."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from fedpgp.clip.model import ImageSpec
from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import FederationSettings, Settings
from fedpgp.core import contract
from fedpgp.core.contract import Contract, Members, form_of
from fedpgp.core.plugins import Plugin
from fedpgp.core.tree import ParamTree, select, stack, without
from fedpgp.methods.base import (
    Batch,
    DiffersByClient,
    FinishesRound,
    FinishesTraining,
    HasDraws,
    HasServerRule,
    Inputs,
    Method,
    Phase,
    PreparesRound,
    Tower,
)
from fedpgp.server_rules import plugin_check as rule_check
from fedpgp.server_rules.base import ServerRule

CLIENTS, IMAGES, PATCHES = 2, 3, 4

OF_CLASS: Members = {
    "name": (str, "a string"),
    "paper": (str, "a string"),
    "settings_type": (type[Settings], "a subclass of fedpgp.config.Settings"),
    "image_inputs": (Inputs, f"one of {', '.join(get_args(Inputs))}"),
    "required_towers": (frozenset[Tower] | set[Tower], "a frozenset of text, image"),
}
OF_INSTANCE: Members = {
    "settings": (Settings, "an instance of settings_type"),
    "shared_keys": (frozenset[str] | set[str], "a frozenset of strings"),
    "phases": (tuple[Phase, ...], "a tuple of fedpgp.methods.base.Phase"),
    "extra_texts": (tuple[str, ...], "a tuple of strings"),
    "supports_unseen_classes": (bool, "true or false"),
}
OF_NEEDS: Members = {"needs_all_classes": (str, "a string")}


def check_class(plugin: Plugin) -> None:
    """Refuse a class that is no method: `ConfigError` with all that is missing or of another type."""
    needed = ["init", "loss", "classifier"]
    if plugin.kind.__init__ is object.__init__:  # otherwise it may set these, see `build`
        needed += ["__init__", *OF_INSTANCE]
    contract.check_class("method.name", "method", plugin, needed, OF_CLASS)


def build(target: str, kind: type[Method], settings: Settings) -> Method:
    """The method with these settings; raise `ConfigError` if it cannot be built, or if a member is missing or wrong."""
    checks = Contract(f"method {target}")
    method = checks.attempt("__init__", lambda: kind(settings))
    members = {**OF_INSTANCE, **(OF_NEEDS if hasattr(kind, "needs_all_classes") else {})}
    checks.refuse(checks.attempt("a member", lambda: contract.wrong(method, members)))
    if "image" in method.required_towers and method.image_inputs != "pixels":
        told = f"required_towers has image, and a cache of {method.image_inputs} features has no pixels for that tower"
        checks.refuse([f"{told}; give image_inputs = 'pixels'"])
    return method


def own_rule(method: HasServerRule, name: str, federation: FederationSettings) -> ServerRule:
    """The server rule of the method `name`; raise `ConfigError` if `server_rule` raises, or gives something else."""
    checks = Contract(f"method {name}")
    rule = checks.attempt("server_rule", lambda: method.server_rule(federation))
    checks.refuse([f"server_rule gives {found}" for found in rule_check.faults(rule)])
    return rule


def dry_run(target: str, method: Method, frozen: ClassSet, image: ImageSpec, rule: ServerRule) -> None:
    """Call everything once on two clients with three random images each, one of them padding.

    What they receive is what the server `rule` sends before the first round. The method's own rule runs for two rounds.

    Raises `ConfigError` if something raises, is not finite, has another shape, or names parameters that do not exist.
    """
    checks = Contract(f"method {target}")
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(0)
        tree = checks.tree("init", checks.attempt("init", lambda: method.init(frozen, generator)))
        checks.refuse(_unknown_keys(method, tree))
        batch = _batch(method, frozen, image, generator)
        if isinstance(method, HasDraws):
            drawn = checks.tree("draws", checks.attempt("draws", partial(method.draws, frozen, generator)))
            batch = replace(batch, draws=stack(drawn, CLIENTS))
        params, shared = stack(tree, CLIENTS), select(tree, method.shared_keys)
        if isinstance(method, HasServerRule):
            rule_check.dry_run(rule.name, rule, shared)
        sent, own = checks.attempt("what the server rule sends", partial(_sent, rule, shared))
        received = {**sent, **own}
        if isinstance(method, PreparesRound):
            prepared = checks.tree("prepare", checks.attempt("prepare", partial(method.prepare, received, frozen)))
            checks.refuse(
                f"prepare: {key!r} has {form_of(value)}, not (K, ...) with K = {CLIENTS}, although the server sends "
                "something to each client alone"
                for key, value in prepared.items()
                if own and value.shape[:1] != (CLIENTS,)
            )
            received = {**received, **prepared}
        for phase in method.phases:
            checks.attempt("loss", partial(_train, checks, method, frozen, params, received, batch, phase))
        with torch.no_grad():
            logits = checks.attempt("classifier", lambda: method.classifier(params | own, frozen)(batch.features))
        shape = (CLIENTS, IMAGES, frozen.num_classes)
        if not isinstance(logits, Tensor) or logits.shape[:2] != shape[:2] or logits.shape[-1] % shape[2]:
            checks.refuse([f"classifier gives {form_of(logits)}, not logits (K, B, C) = {shape}"])
        if not logits.isfinite().all():
            checks.refuse(["classifier gives logits that are not finite"])
        _finish(checks, method, tree, received)


def _sent(rule: ServerRule, shared: ParamTree) -> tuple[ParamTree, ParamTree]:
    """What two clients are sent before the first round: both of them, and each alone (K, ...)."""
    return rule.broadcast(rule.init(shared, CLIENTS), shared, np.arange(CLIENTS))


def _finish(checks: Contract, method: Method, tree: ParamTree, received: ParamTree) -> None:
    """What a method does before and after local training, each with all clients as they start."""
    params, shared = stack(tree, CLIENTS), select(tree, method.shared_keys)
    personal, one = without(params, shared), without(tree, shared)
    if isinstance(method, DiffersByClient):
        for client in range(CLIENTS):
            _changed(checks, "personal_of", partial(method.personal_of, client, one), one)
    if isinstance(method, FinishesTraining):
        generators = [torch.Generator().manual_seed(client) for client in range(CLIENTS)]
        finished = partial(method.after_training, params, received, 1, generators)
        checks.like("after_training", checks.attempt("after_training", finished), params)
    if isinstance(method, FinishesRound):
        _changed(checks, "after_aggregation", partial(method.after_aggregation, personal, shared), personal)


def _changed(checks: Contract, what: str, call: Callable[[], ParamTree], before: ParamTree) -> None:
    """Check a change of some of the parameters `before`."""
    after = checks.tree(what, checks.attempt(what, call))
    checks.like(what, after, select(before, after))


def _train(
    checks: Contract,
    method: Method,
    frozen: ClassSet,
    params: ParamTree,
    received: ParamTree,
    batch: Batch,
    phase: Phase,
) -> None:
    """One loss and its gradients."""
    own = {key: value.clone().requires_grad_(key in phase.keys) for key, value in params.items()}
    result = method.loss(own, received, frozen, batch)
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        checks.refuse([f"loss returns {form_of(result)}, not a tensor (K,) and a dict of its parts"])
    loss, parts = result
    named = {"loss": loss, **{f"part {key!r} of the loss": value for key, value in parts.items()}}
    wrong = [
        f"{name} has {form_of(value)}, not (K,) = ({CLIENTS},)"
        for name, value in named.items()
        if not isinstance(value, Tensor) or value.shape != (CLIENTS,)
    ]
    checks.refuse(wrong or ([] if loss.isfinite().all() else [f"loss is not finite: {loss.tolist()}"]))
    for key in sorted(phase.keys):
        gradient = torch.autograd.grad(loss.sum(), own[key], retain_graph=True, allow_unused=True)[0]
        if gradient is None:
            checks.refuse([f"loss does not depend on {key!r}, which a phase trains"])


def _unknown_keys(method: Method, tree: ParamTree) -> Iterator[str]:
    named = {"shared_keys": method.shared_keys}
    named |= {f"phases[{number}].keys": phase.keys for number, phase in enumerate(method.phases)}
    for where, keys in named.items():
        if unknown := sorted(keys - tree.keys()):
            yield f"{where} has {', '.join(unknown)}, which init does not produce (it produces {', '.join(tree)})"


def _batch(method: Method, frozen: ClassSet, image: ImageSpec, generator: torch.Generator) -> Batch:
    shape = CLIENTS, IMAGES
    if method.image_inputs == "pixels":
        features = torch.randint(256, (*shape, 3, image.size, image.size), generator=generator, dtype=torch.uint8)
    else:
        patches = (1 + PATCHES,) if method.image_inputs == "patches" else ()
        features = torch.randn(*shape, *patches, frozen.joint_width, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, -1] = False
    return Batch(features, torch.randint(frozen.num_classes, shape, generator=generator), mask)
