"""The tables by name: sweeps, data sets and layout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedpgp.analysis.reproduce import layouts
from fedpgp.analysis.reproduce.layouts import Member, Numbers
from fedpgp.core.errors import ConfigError
from fedpgp.core.text import did_you_mean


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    title: str
    sweeps: Mapping[str, tuple[str, ...]]
    """shipped sweep -> the data sets that it runs"""
    layout: Callable[[Sequence[Member], Sequence[str]], Numbers]
    variants: tuple[str, ...] | None = None
    """variants of the sweep that the table has; None: all"""

    @property
    def data(self) -> tuple[str, ...]:
        """Data sets of all sweeps, in order."""
        return tuple(data for own in self.sweeps.values() for data in own)


FOUR = ("oxford_pets", "flowers102", "dtd", "caltech101")
FIVE = (*FOUR, "food101")

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
    ),
    "lora": Table("LoRA: low-rank updates of the text tower", {"lora": ("oxford_pets",)}, layouts.low_rank),
}


def find(name: str) -> Table:
    """Find a table by its name.

    Raises:
        ConfigError: no table has this name.
    """
    if name not in TABLES:
        hint = did_you_mean(name.lower(), TABLES, "give one of them")
        raise ConfigError(f"{name}: no such table; {hint} (known: {', '.join(TABLES)})")
    return TABLES[name]
