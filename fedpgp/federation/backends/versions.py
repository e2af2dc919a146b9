"""Checks that the nodes of a cluster have the versions of this process; others could change the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedpgp.core import provenance
from fedpgp.core.errors import ResourceError
from fedpgp.core.text import first_of

ANSWER_SECONDS = 30.0
"""Time that nodes have to answer; of one that does not, each actor says its versions all the same."""
ADVICE = "install the same version on every node"

_checked: set[str] = set()
"""Ids of the nodes that have the versions of this process."""


def alive() -> list[str]:
    """The ids of the living nodes."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def check(node_ids: Iterable[str], own: bool = True) -> None:
    """Raise `ResourceError` if a node has other versions of Python, fedpgp or a library than this process.

    All nodes are asked at the same time, each once per process. A node that is gone is ignored.

    Args:
        own: also ask the node of this process, which may run in another environment; false: it is an actor.
    """
    if not (new := set(node_ids) - _checked - (set() if own else {ray.get_runtime_context().get_node_id()})):
        return
    question = ray.remote(_question()).options
    there = {one: NodeAffinitySchedulingStrategy(one, soft=False) for one in new}
    asked = {question(num_cpus=0, max_retries=0, scheduling_strategy=node).remote(): one for one, node in there.items()}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_SECONDS)
    wrong = []
    for reference in answered:
        node = asked[reference]
        try:
            difference = compare(ray.get(reference))
        except RayError:  # the node was lost
            continue
        if difference is None:
            _checked.add(node)
        else:
            wrong.append(f"{_name(node)} {difference}")
    if wrong:
        raise ResourceError(f"{first_of(sorted(wrong), 3)}: {ADVICE}")


def check_answer(node_id: str, found: dict[str, str] | str) -> None:
    """Raise `ResourceError` if an actor has found other versions than this process.

    Its node may have joined after `check`, or other versions were installed there meanwhile.
    """
    if (difference := compare(found)) is not None:
        raise ResourceError(f"{_name(node_id)} {difference}: {ADVICE}")


def _name(node_id: str) -> str:
    """The name and the address of a node."""
    node = next((one for one in ray.nodes() if one["NodeID"] == node_id), None)
    return node_id if node is None else f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def compare(found: dict[str, str] | str) -> str | None:
    """Say how the versions of a node, or the error that kept it from finding them, differ from ours; None: not at all.

    `has torch 2.13.0 and numpy 1.26.4, the driver 2.14.1 and 2.4.6`
    """
    if isinstance(found, str):
        return f"cannot import the driver's fedpgp ({found})"
    own = provenance.software()
    names = [name for name in own if found.get(name) != own[name]]
    if not names:
        return None
    theirs = " and ".join(f"{name} {found.get(name, 'of another age')}" for name in names)
    return f"has {theirs}, the driver {' and '.join(own[name] for name in names)}"


def _question() -> Callable[[], Any]:
    """What a node is asked. A nested function is sent as code, so that it also runs where fedpgp is missing."""

    def software() -> dict[str, str] | str:
        try:
            from fedpgp.core import provenance

            return provenance.software()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    return software
