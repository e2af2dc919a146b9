"""Whether a plan fits a cluster: sums, and the packing of fractions per node and device. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EPSILON = 1e-9


def capacity(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many actors of that size fit one node.

    A fraction of a GPU must lie on one device: 2 GPUs hold 6 x 0.3, not 6.67. Whole GPUs are counted.
    """
    fits = [int(node.get("CPU", 0) / cpus + EPSILON)]
    if gpus > 0:
        devices = int(node.get("GPU", 0))
        fits.append(devices * int(1 / gpus + EPSILON) if gpus <= 1 else int(devices / gpus + EPSILON))
    return min(fits)


def shortfall(actors: int, cpus: float, gpus: float, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """What is missing for `actors` of that size, in one line; None: they fit."""
    fitting = sum(capacity(node, cpus, gpus) for node in nodes)
    if fitting >= actors:
        return None
    have = {kind: sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU")}
    needs = f"{actors} actors x ({cpus:g} CPU, {gpus:g} GPU) need {actors * cpus:g} CPU and {actors * gpus:g} GPU"
    has = f"the cluster has {have['CPU']:g} CPU and {have['GPU']:g} GPU on {len(nodes)} node(s)"
    short = [kind for kind, each in (("CPU", cpus), ("GPU", gpus)) if have[kind] + EPSILON < actors * each]
    reason = f"short of {' and '.join(short)}" if short else "the fractions do not pack into its nodes and devices"
    return f"{needs}; {has}: {reason}, {fitting} fit; lower resources.actors, cpus_per_actor or gpus_per_actor"
