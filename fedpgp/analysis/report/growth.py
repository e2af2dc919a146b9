"""How a quantity grows with another: a figure with two logarithmic axes."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from fedpgp.analysis.report.style import item_style, panel, styled


@styled
def growth_figure(curves: Mapping[str, Mapping[float, float]], x_label: str, y_label: str) -> Figure:
    """Draw values by size, a curve for each name.

    Args:
        curves: value by size, both positive.
    """
    figure, axes = panel(5.2, 3.4)
    for number, (name, values) in enumerate(curves.items()):
        axes.plot(list(values), list(values.values()), label=name, **item_style(number))
    axes.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True)
    axes.legend(loc="center right")
    return figure
