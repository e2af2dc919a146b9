"""Over how many clients a mean is taken, in words, where these are not all clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from fedpgp.core.text import first_of
from fedpgp.federation.metrics import METRICS, NEW_CLIENT
from fedpgp.storage.run_folder import RunFolder

SPLITS = {"val": "validation", "test": "test", NEW_CLIENT: "test"}
MEANS_OF_HM = ("local", "base", "novel")


@dataclass(frozen=True)
class Coverage:
    """Clients in the mean of a metric, over rounds and runs."""

    least: int
    most: int
    clients: int
    missing: int
    """the most clients that any of the means is without"""
    tested: bool
    """every client that is neither unseen nor an attacker was tested, not only some of them"""
    attack: int = 0
    """those that attack, which are left out"""
    unseen: int = 0
    """those that never train, which are left out"""

    def union(self, other: Coverage) -> Coverage:
        """The range of both."""
        return Coverage(
            min(self.least, other.least),
            max(self.most, other.most),
            max(self.clients, other.clients),
            max(self.missing, other.missing),
            self.tested and other.tested,
            max(self.attack, other.attack),
            max(self.unseen, other.unseen),
        )

    def text(self, images: str) -> str:
        """`mean over 6 of 8 clients (2 have no test image)`."""
        reasons = [f"{self.attack} attack" * bool(self.attack), f"{self.unseen} never train" * bool(self.unseen)]
        if not self.tested:
            reasons.append(f"those tested in the round that have a {images} image")
        elif self.least < self.most:
            reasons.append(f"some have no {images} image")
        elif self.missing:
            reasons.append(f"{self.missing} {'has' if self.missing == 1 else 'have'} no {images} image")
        why = ", ".join(filter(None, reasons))
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        differs = "" if self.least == self.most else ", not the same for all rounds and runs"
        return f"mean over {count} of {self.clients} clients ({why}{differs})"


def of_run(store: RunFolder) -> dict[str, Coverage]:
    """The clients in each mean of a run; empty for a run that does not name its clients."""
    names, attack = store.identity.get("client_names"), store.identity.get("attack", {})
    unseen = len(store.identity.get("unseen_clients", ()))
    return coverage(store.clients(), len(names), len(attack.get("clients", ())), unseen) if names else {}


def left_out(store: RunFolder) -> list[str]:
    """Which clients of a run attack, and which never train, by name; empty if there are none."""
    names, attack = store.identity.get("client_names", []), store.identity.get("attack")
    groups = {f"attack with {attack['kind']}": attack["clients"]} if attack else {}
    groups["never train, and are the new clients"] = store.identity.get("unseen_clients", [])
    return [f"{first_of([names[one] for one in own], 10)}: {what}" for what, own in groups.items() if own]


def coverage(rows: pa.Table, clients: int, attack: int = 0, unseen: int = 0) -> dict[str, Coverage]:
    """The clients in each mean of a run, by metric (`test/local`).

    Args:
        rows: of a run, in `CLIENT_SCHEMA`.
        clients: their number in the run.
        attack: the number of those that attack.
        unseen: the number of those that never train, which are all of the split `new_client`.
    """
    rows = rows.filter((pc.field("split") != "train") & pc.field("domain").is_null())
    rows = rows.append_column("counts", pc.cast(pc.greater(rows["total"], 0), pa.int64()))
    groups = rows.group_by(["round", "split", "metric"], use_threads=False)
    sums = groups.aggregate([("counts", "sum"), ("counts", "count")])
    found: dict[str, Coverage] = {}
    for row in sums.to_pylist():
        if row["counts_sum"]:
            name = f"{row['split']}/{row['metric']}"
            left_out = (0, 0) if row["split"] == NEW_CLIENT else (attack, unseen)
            of, counted = unseen if row["split"] == NEW_CLIENT else clients, row["counts_sum"]
            wanted = of - sum(left_out)
            one = Coverage(counted, counted, of, wanted - counted, row["counts_count"] == wanted, *left_out)
            found[name] = found[name].union(one) if name in found else one
    for split in SPLITS:
        parts = [found[f"{split}/{metric}"] for metric in MEANS_OF_HM if f"{split}/{metric}" in found]
        if len(parts) == len(MEANS_OF_HM):
            found[f"{split}/hm"] = min(parts, key=lambda one: one.least)
    return found


def lines(runs: Iterable[Mapping[str, Coverage]], titles: Mapping[str, str]) -> dict[str, str]:
    """By metric of runs that are averaged: over how many clients its mean is, if not over all of them.

    Args:
        titles: names of the metrics, for the text.
    """
    merged: dict[str, Coverage] = {}
    for run in runs:
        for name, one in run.items():
            merged[name] = merged[name].union(one) if name in merged else one
    texts: dict[tuple[str, str], list[str]] = {}
    for split, images in SPLITS.items():
        for metric in METRICS:
            found = merged.get(f"{split}/{metric}")
            if found is not None and found.least < found.clients and (found.missing or found.attack or found.unseen):
                texts.setdefault((split, found.text(images)), []).append(metric)
    return {
        f"{split}/{metric}": f"{', '.join(titles[one] for one in metrics)} ({split}): {text}"
        for (split, text), metrics in texts.items()
        for metric in metrics
    }
