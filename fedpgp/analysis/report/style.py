"""The style of all figures, readable with any colour vision and in print without colours."""

import functools
import io
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpgp.analysis.report.fonts import use_fonts

COLORS = ("#4d4d4d", "#d55e00", "#0072b2", "#56b4e9", "#009e73", "#cc79a7", "#e69f00",
          "#8b1fe0", "#772200", "#7fb35a", "#440055", "#9a86f5")  # fmt: skip
"""Distinct with any colour vision and readable on white: Okabe and Ito's without yellow, and as many more."""
MARKERS = "sovDP^X*<>ph"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)),
          (0, (5, 1, 1, 1)), (0, (3, 5)), (0, (1, 3)), (0, (10, 3)))  # fmt: skip
HATCHES = ("", "///", "...", "\\\\\\", "xx", "++", "oo", "--", "**", "||", "OO", "//..")
"""As many patterns as colours, for print without colours."""
DPI = 120
MARGIN = 0.1
"""Inches around what is drawn."""
MAX_NAME = 24
"""Characters of a name at an axis."""
RC: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "xtick.color": "0.3",
    "ytick.color": "0.3",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.framealpha": 0.9,
    "svg.hashsalt": "fedpgp",
    "svg.fonttype": "path",
    "text.parse_math": False,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a function that draws, so that it uses this style, and fonts that have the characters of its texts."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            figure = draw(*args, **kwargs)
            use_fonts(figure)
            return figure

    return drawn


def blank(width: float, height: float) -> Figure:
    """An empty figure of this many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panel(width: float, height: float, horizontal_grid: bool = False) -> tuple[Figure, Axes]:
    """An empty figure of this many inches, and its only panel, with horizontal grid lines or none."""
    figure = blank(width, height)
    axes = figure.subplots()
    axes.grid(visible=False, axis="x" if horizontal_grid else "both")
    return figure, axes


def short(name: str) -> str:
    """Shorten a name for an axis."""
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def wrapped(label: str, width: int = 36) -> str:
    """Break a long label into at most four lines for a legend or an axis."""
    return textwrap.fill(label, width, max_lines=4, placeholder=" …")


def item_style(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of an item by its number. Colours repeat with other markers and dashes."""
    other = number + number // len(COLORS)
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[other % len(MARKERS)],
        "linestyle": DASHES[other % len(DASHES)],
    }


def area_style(number: int) -> dict[str, Any]:
    """Colour and hatch of a bar or a box by its number. Colours repeat with other hatches."""
    return {
        "facecolor": COLORS[number % len(COLORS)],
        "hatch": HATCHES[(number + number // len(COLORS)) % len(HATCHES)],
    }


def annotate(axes: Axes, shown: Any, values: Any, form: str = "{:.1f}") -> None:
    """Write numbers (rows, columns) into the cells of an image, dark on light and light on dark."""
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value == value:  # not NaN
                red, green, blue, _ = shown.cmap(shown.norm(value))
                ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
                axes.text(column, row, form.format(value), ha="center", va="center", color=ink, fontsize=8)


class Drawing:
    """A figure as PNG and SVG, of one layout for both and the same bytes every time.

    It is as large as what is drawn, also if a title or a label needs more room than the figure has. A figure without a
    layout engine has fixed margins, and keeps its size.
    """

    def __init__(self, figure: Figure) -> None:
        self._figure, self._bounds = figure, None
        _prepare(figure)
        if (engine := figure.get_layout_engine()) is not None:
            with _style():
                engine.execute(figure)
                self._bounds = figure.get_tightbbox().padded(MARGIN)

    @cached_property
    def png(self) -> bytes:
        """Encode it as PNG."""
        return self._encoded("png", {"Software": None})

    @cached_property
    def svg(self) -> bytes:
        """Encode it as SVG."""
        return self._encoded("svg", {"Date": None, "Creator": None})

    def save(self, stem: Path) -> list[Path]:
        """Write STEM.png and STEM.svg, and create the folder if it is missing."""
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_name(f"{stem.name}.{format}") for format in ("png", "svg")]
        for path, content in zip(paths, (self.png, self.svg), strict=True):
            path.write_bytes(content)
        return paths

    def _encoded(self, format: str, metadata: Any) -> bytes:
        sink, engine = io.BytesIO(), self._figure.get_layout_engine()
        self._figure.set_layout_engine(None)  # otherwise it is laid out, and drawn, once more for each format
        try:
            with _style():
                self._figure.savefig(sink, format=format, dpi=DPI, metadata=metadata, bbox_inches=self._bounds)
        finally:
            self._figure.set_layout_engine(engine)
        return sink.getvalue()


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg, and create the folder if it is missing."""
    return Drawing(figure).save(stem)


def encoded(figure: Figure, format: Literal["png", "svg"]) -> bytes:
    """Encode the figure in one format."""
    drawing = Drawing(figure)
    return drawing.png if format == "png" else drawing.svg


def render(figure: Figure, target: Path, **options: Any) -> None:
    """Save a figure with fixed margins as it is."""
    _prepare(figure)
    with _style():
        figure.savefig(target, **options)


def _prepare(figure: Figure) -> None:
    """Choose fonts that have the characters of the texts; dollar signs of names do not make formulas."""
    for text in use_fonts(figure):
        text.set_parse_math(False)


@contextmanager
def _style() -> Iterator[None]:
    """Draw in this style. Matplotlib's warnings, of missing glyphs or too little room, are not for readers."""
    with rc_context(RC), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
