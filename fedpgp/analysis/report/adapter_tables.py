"""What was learned, taken apart, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from fedpgp.analysis.spectra import Overlap, Spectrum

RANKS = (1, 2, 4, 8, 16)


def overlaps(found: Mapping[str, Overlap]) -> Table:
    """Table 7 of the LoRA paper: how much of W lies in the directions of its change, of its own, and of chance."""
    table = Table(title="||U^T W V||, U and V the top singular directions of ...", caption="means over the layers")
    for heading in ("target", "the change", "W itself", "random", "||W||", "||change||", "amplification"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for target, one in found.items():
        values = (one.delta, one.weight, one.random, one.weight_norm, one.delta_norm)
        amplified = f"{one.amplification:.2f}" if one.delta else "-"
        table.add_row(target, *(f"{value:.3f}" for value in values), amplified)
    return table


def ranks(found: Spectrum) -> Table:
    """How many ranks the personal parts need, over the clients."""
    most = found.values.shape[-1]
    norms = found.values.double().square().sum(-1).sqrt()
    caption = f"{norms.numel()} personal parts, norm {norms.mean():.3f}, at most rank {most}"
    table = Table(title="Is the personal part low-rank?", caption=caption)
    for heading in ("rank", "share of the squared norm", "least", "most"):
        table.add_column(heading, justify="right")
    for rank in [rank for rank in RANKS if rank < most] + [most]:
        shares = 100 * found.energy(rank)
        table.add_row(str(rank), *(f"{value:.1f} %" for value in (shares.mean(), shares.min(), shares.max())))
    table.add_section()
    needed = found.effective_rank().double()
    table.add_row("for 90 %", f"{needed.mean():.1f}", f"{needed.min():.0f}", f"{needed.max():.0f}")
    return table
