"""Pages about one method or one server rule: its docstring, what it needs and sends, its settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from fedpgp.analysis.report.listings import prefix_of, shown_keys
from fedpgp.analysis.report.tables import Table
from fedpgp.config import FederationSettings
from fedpgp.core import contract, docstrings
from fedpgp.core.text import memory_size
from fedpgp.core.tree import ParamTree, num_bytes, select
from fedpgp.federation import rule_needs, traffic
from fedpgp.methods.base import HasGlobalModel, HasServerRule, LimitsBlocks, Method, NeedsAllClasses, Phase
from fedpgp.methods.size import Sizes, parameters
from fedpgp.server_rules.base import ClientHalf, ServerRule

CLIENTS = 10
"""Clients of the federation whose second round is counted."""
INPUTS = {
    "pooled": "one feature of each image, encoded once",
    "patches": "the features of all patches of each image, encoded once",
    "pixels": "pixels, which pass through a network in every step",
}


def method_page(name: str, method: Method, sizes: Sizes) -> Group:
    """The page about a method with the settings that it has.

    Args:
        name: as in `method.name`.
        sizes: of the backbone for which parameters and bytes are counted.

    Raises:
        ConfigError, BackboneError: the method cannot be used with such a backbone.
    """
    trees = contract.Contract(f"method {name}").attempt("init", lambda: parameters(method, sizes))
    where = "" if not method.required_towers and method.image_inputs == "pixels" else f" on {sizes.name}"
    return Group(
        *_head(name, method),
        *_prose(type(method).__doc__),
        _facts(_of_method(method, *trees)),
        _parameters(method, *trees, where),
        _settings(method.settings),
    )


def rule_page(name: str, rule: ServerRule) -> Group:
    """The page about a server rule with the settings that it has; `name` as in `federation.server.name`."""
    kept = "a part of its own of every client" if isinstance(rule, ClientHalf) else "nothing of a client"
    facts = {
        "needs of a round": "every update" if rule.uploads == "stack" else "the weighted sum of the updates",
        "weights of clients": rule.weighting,
        "fewest updates": str(rule.fewest),
        "clients keep": kept,
    }
    return Group(*_head(name, rule), *_prose(type(rule).__doc__), _facts(facts), _settings(rule.settings))


def _head(name: str, owner: Any) -> Iterator[RenderableType]:
    """Name, paper and class; and the method or rule that it extends, if it does."""
    kind: Any = type(owner)
    yield Text(f"{name}: {kind.paper}", "bold")
    yield Text(f"{kind.__module__}.{kind.__qualname__}", "dim")
    parents = [parent.name for parent in kind.__mro__[1:] if "name" in vars(parent)]
    if parents:
        yield Text(f"extends {parents[0]}, which has a page of its own")


def _prose(docstring: str | None) -> Iterator[RenderableType]:
    for section in docstrings.sections(docstring or "There is no docstring."):
        yield Text(f"\n{section.heading}", "bold")
        for block in section.blocks:
            text = Text(f"- {block.text}" if block.kind == "item" else block.text)
            yield Padding(text, (0, 0, 0, 6 if block.kind == "verbatim" else 2))


def _facts(facts: Mapping[str, str]) -> RenderableType:
    grid = Grid.grid(padding=(0, 2, 0, 0))
    for label, text in facts.items():
        grid.add_row(Text(label), Text(text))
    return Group(Text("\nAt work", "bold"), Padding(grid, (0, 0, 1, 2)))


def _of_method(method: Method, shared: ParamTree, personal: ParamTree) -> dict[str, str]:
    """What travels, what stays, what is trained, and what the method can do."""
    federation = FederationSettings()
    rule = rule_needs.rule_of(method, federation)
    own = isinstance(method, HasServerRule)
    global_model = isinstance(method, HasGlobalModel) or bool(shared and not personal)
    facts = {
        "sent up": _sent_up(rule, shared),
        "sent down": _sent_down(rule, shared),
        "server's rule": "its own" if own else "any; by default " + rule.name if shared else "none is needed",
        "stays with the client": _size(num_bytes(personal)) + _named(personal) if personal else "nothing",
        "trained": "\n".join(_phase(phase) for phase in method.phases) or "nothing",
        "images": INPUTS[method.image_inputs],
        "frozen towers": ", ".join(sorted(method.required_towers)) + " of CLIP"
        if method.required_towers
        else "none: it learns a network of its own",
        "unseen classes": "yes" if method.supports_unseen_classes else "no: only those it was trained on",
        "own classes": _own_classes(method),
        "global model": "yes" if global_model else "no",
    }
    if isinstance(method, LimitsBlocks):
        facts["clients in one batch"] = f"at most {method.max_block}"
    return facts


def _sent_up(rule: ServerRule, shared: ParamTree) -> str:
    if not shared:
        return "nothing"
    uploads = traffic.sent(rule, rule.init(shared, CLIENTS), shared)
    return f"{_size(num_bytes(uploads))} per client and round{_named(uploads)}"


def _sent_down(rule: ServerRule, shared: ParamTree) -> str:
    """The bytes of the first round and, if they are others, of the second."""
    if not shared:
        return "nothing"
    first = traffic.bytes_down(rule, rule.init(shared, CLIENTS), shared)
    later = traffic.bytes_down(rule, traffic.after_a_round(rule, shared, CLIENTS), shared)
    if first == later:
        return f"{_size(first)} per client and round"
    return f"{_size(first)} per client in round 1, {_size(later)} in later ones ({CLIENTS} clients, all in each round)"


def _own_classes(method: Method) -> str:
    """Whether clients may train among their own classes alone (`protocol.train_classes: own`)."""
    reason = method.needs_all_classes if isinstance(method, NeedsAllClasses) else ""
    return f"no: {reason}" if reason else "yes, with protocol.train_classes=own"


def _phase(phase: Phase) -> str:
    """The keys of a phase, and what it sets instead of the federation."""
    rates: dict[float, set[str]] = {}
    for key, rate in phase.lr.items():
        rates.setdefault(rate, set()).add(key)
    changed = [f"learning rate {rate:g} of {shown_keys(keys)}" for rate, keys in rates.items()]
    changed += [f"learning rates x {phase.decay:g} per round"] if phase.decay != 1 else []
    for what, value in (("epochs", phase.epochs), ("momentum", phase.momentum), ("weight decay", phase.weight_decay)):
        changed += [f"{what} {value:g}"] if value is not None else []
    return "; ".join([shown_keys(phase.keys), *changed])


def _parameters(method: Method, shared: ParamTree, personal: ParamTree, where: str) -> RenderableType:
    learned = {key for phase in method.phases for key in phase.keys}
    rows = []
    for tree, goes in ((shared, "sent"), (personal, "stays")):
        for shown, own in _grouped(tree):
            shape = " x ".join(map(str, tree[shown].shape)) if shown in tree else f"{len(own)} tensors"
            trained = "trained" if own.keys() <= learned else "partly trained" if own.keys() & learned else "fixed"
            rows.append((shown, shape, f"{goes}, {trained}", f"{num_bytes(own):,}"))
    title = f"Parameters of one client{where}, with the settings below and one class"
    return Table(title, ("key", "shape", "", "bytes"), rows, text_columns=3) if rows else Text("")


def _grouped(tree: ParamTree) -> Iterator[tuple[str, ParamTree]]:
    """The entries by the names that `shown_keys` gives them."""
    for shown in shown_keys(tree.keys()).split(", ") if tree else ():
        yield shown, select(tree, [key for key in tree if shown in (key, prefix_of(key))])


def _settings(settings: BaseModel) -> RenderableType:
    defaults, fields = settings.model_dump(mode="json"), type(settings).model_fields
    rows = [
        (key, json.dumps(value), " ".join((fields[key].description or "").split())) for key, value in defaults.items()
    ]
    return Table("Settings", ("key", "default", "meaning"), rows, text_columns=3) if rows else Text("No settings.\n")


def _size(count: int) -> str:
    return f"{memory_size(count)} ({count:,} bytes)" if count >= 1024 else f"{count} bytes"


def _named(keys: Iterable[str]) -> str:
    return f": {shown_keys(set(keys))}"
