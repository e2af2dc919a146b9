"""The papers' tables by name: sweeps, data sets, layout, and the paper whose numbers they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedpgp.analysis.reproduce import layouts
from fedpgp.analysis.reproduce.layouts import Member, Numbers
from fedpgp.analysis.reproduce.published import Published

FOUR = ("oxford_pets", "flowers102", "dtd", "caltech101")
FIVE = (*FOUR, "food101")
NINE = (
    "caltech101", "flowers102", "fgvc_aircraft", "ucf101", "oxford_pets", "food101", "dtd", "stanford_cars", "sun397"
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    title: str
    sweeps: Mapping[str, tuple[str, ...]]
    """shipped sweep -> the data sets that it trains on"""
    layout: Callable[[Sequence[Member], Sequence[str]], Numbers]
    variants: tuple[str, ...] | None = None
    """variants of the sweep that the table has; None: all"""
    paper: str = "fedpgp"
    """the file of the printed numbers"""

    @property
    def data(self) -> tuple[str, ...]:
        """Data sets of all sweeps, in order."""
        return tuple(data for own in self.sweeps.values() for data in own)

    def published(self, name: str) -> Published:
        """The printed numbers of this table."""
        return Published.read(self.paper, name)


TABLES: Mapping[str, Table] = {
    "table1": Table(
        "Own classes and base-to-novel generalization", {"base_to_novel_5datasets": FIVE}, layouts.base_to_novel
    ),
    "table2": Table(
        "Leave one domain out: columns are held-out domains",
        {"office_lodo": ("office_caltech10",), "domainnet_lodo": ("domainnet10",)},
        layouts.held_out,
    ),
    "table4": Table(
        "Leave one domain out: held-out domain by client",
        {"office_lodo": ("office_caltech10",)},
        layouts.held_out_by_client,
        ("CoOp", "FedPGP"),
    ),
    "table5": Table("100 clients, Dirichlet", {"cifar_dirichlet": ("cifar10", "cifar100")}, layouts.local_by_data),
    "table6": Table("Ablation: adaption and additional loss", {"ablations": FIVE}, layouts.base_to_novel),
    "table7": Table("Ablation: additional loss, own classes", {"ablation_negative": FIVE}, layouts.local_by_data),
    "table11": Table("Rank by shots, own classes", {"rank_by_shots": FOUR}, layouts.rank_by_shots),
    "pfedpt": Table(
        "pFedPT: a frame of learned pixels around the images of a shared network",
        {"pfedpt": ("cifar10",)},
        layouts.local_only,
        paper="pfedpt",
    ),
    "lora": Table(
        "LoRA: low-rank updates of the text tower", {"lora": ("oxford_pets",)}, layouts.low_rank, paper="lora"
    ),
    "fedtpg": Table(
        "FedTPG: nine data sets in one federation, and ImageNet clients tested on ten others",
        {"fedtpg_cross_class": NINE, "fedtpg_cross_data": ("imagenet",)},
        layouts.by_federation,
        paper="fedtpg",
    ),
    "fedmgp": Table(
        "FedMGP: own classes and base-to-novel generalization",
        {"base_to_novel_9datasets": NINE},
        layouts.combined_mean,
        paper="fedmgp",
    ),
    "dp_fpl": Table(
        "DP-FPL: own and neighbor classes by epsilon",
        {"dp_fpl": ("caltech101", "oxford_pets", "flowers102", "food101")},
        layouts.neighbors,
        paper="dp_fpl",
    ),
}
