"""Figures of learned prompts: spectra, similarities and nearest words."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fedpgp.analysis.prompts import NearWords
from fedpgp.analysis.report.style import COLORS, DIVERGING, annotate, blank, short, styled

MAX_NUMBERS = 12
"""Figures with more clients have no numbers in the cells."""
MAX_TICKS = 40


@styled
def spectra(values: np.ndarray, label: str) -> Figure:
    """Draw the singular values of each personal part, and the share of its energy by rank.

    Args:
        values: descending (K, min(L, D)).
    """
    energy = np.cumsum(values**2, axis=1)
    total = energy[:, -1:]
    share = 100 * np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)
    ranks = np.arange(1, values.shape[1] + 1)
    figure = blank(8.0, 3.4)
    left, right = figure.subplots(1, 2)
    for axes, numbers in ((left, values), (right, share)):
        axes.plot(ranks, numbers.T, color="0.75", linewidth=0.7)
        axes.plot(ranks, np.median(numbers, axis=0), "o-", color=COLORS[2], markersize=4, label="median of the clients")
        axes.set_xlabel("number of the singular value" if axes is left else "rank")
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.set(ylabel="singular value", ylim=(0, None))
    right.set(ylabel="energy up to this rank, percent", ylim=(0, 103))
    right.axhline(90, color="0.5", linestyle=":", linewidth=1)
    left.legend()
    figure.suptitle(f"{label}: personal parts of the prompt", fontsize=10)
    return figure


@styled
def similarity(cosines: np.ndarray, names: Sequence[str], label: str) -> Figure:
    """Draw cosine similarities (K, K) of the personal parts."""
    labels = [short(name) for name in names]
    side = min(10.0, max(2.2, 1.4 + 0.08 * max(map(len, labels))) + 0.42 * len(names))
    figure = blank(side + 0.8, side)
    axes = figure.subplots()
    axes.grid(visible=False)
    shown = axes.imshow(cosines, cmap=DIVERGING, vmin=-1, vmax=1)
    if len(names) <= MAX_NUMBERS:
        annotate(axes, shown, cosines, "{:.2f}")
    step = -(-len(names) // MAX_TICKS)
    axes.set_xticks(range(0, len(names), step), labels[::step], rotation=90)
    axes.set_yticks(range(0, len(names), step), labels[::step])
    axes.set_title(f"{label}: cosine similarity", loc="left")
    figure.colorbar(shown, shrink=0.8)
    return figure


@styled
def nearest_words(found: Sequence[NearWords], label: str) -> Figure:
    """Draw for each context token (down) its nearest words with their Euclidean distances."""
    grid = np.array([one.distances for one in found])
    figure = blank(1.6 + 1.35 * grid.shape[1], 1.2 + 0.34 * len(grid))
    axes = figure.subplots()
    axes.grid(visible=False)
    axes.imshow(grid, cmap="Greys", aspect="auto", vmin=0, vmax=2 * float(grid.max()))
    for row, one in enumerate(found):
        for column, word in enumerate(one.words):
            text = f"{word}  {grid[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(grid)), [f"token {one.token}" for one in found])
    axes.set_xticks(range(grid.shape[1]), ["nearest", *(f"{number}." for number in range(2, grid.shape[1] + 1))])
    axes.set_title(f"{label}: words near the learned context", loc="left")
    axes.set_xlabel("distance of embeddings; a context far from all words is common, and then they mean little")
    return figure
