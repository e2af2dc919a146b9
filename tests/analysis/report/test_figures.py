"""Figures show the numbers of the comparison, and nothing that was not measured."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fedpgp.analysis import adapters, learned
from fedpgp.analysis.loading import Curve, Entry, compare
from fedpgp.analysis.report import comparison_figures, comparison_tables, style
from fedpgp.analysis.report.figures import MAX_GROUPS, MAX_SCENARIOS, all_figures
from fedpgp.core.errors import RunError

VISIONS = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "no blue": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
"""What eyes that lack a kind of cones make of linear RGB (Machado, Oliveira and Fernandes, 2009)."""


def lab(linear):
    """Linear sRGB (n, 3) in CIELAB, in which distances are what they look like."""
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    x, y, z = np.cbrt(linear @ to_xyz.T / [0.9505, 1.0, 1.0888]).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.fixture
def compared(made_run):
    """Two methods with two seeds each; FedPGP has a personal part."""
    entries = []
    for seed in (1, 2):
        local = {"test_base": [60], "test_hm": [58 + seed]}
        mine = {"U": torch.ones(2, 1, 2, 1), "V": torch.ones(2, 1, 1, 3)}
        entries.append(
            Entry(made_run("method.name=coop", f"seed={seed}", test_local=[80 + seed], test_novel=[50], **local))
        )
        entries.append(
            Entry(
                made_run(
                    f"seed={seed}",
                    test_local=[70],
                    test_novel=[60 + 2 * seed],
                    shared={"ctx": torch.zeros(1, 2, 3)},
                    personal=mine,
                    **local,
                )
            )
        )
    return compare(entries)


def test_the_trade_off_has_a_point_and_its_spread_for_each_group(compared):
    figure = comparison_figures.local_against_novel(compared.groups)
    (axes,) = figure.axes
    points = [(container[0].get_xdata()[0], container[0].get_ydata()[0]) for container in axes.containers]
    assert points == [(81.5, 50.0), (70.0, 63.0)]
    (_, _, (_, up)) = axes.containers[1]
    assert up.get_segments()[0][:, 1] == pytest.approx([63 - 2**0.5, 63 + 2**0.5])  # standard deviation of 62 and 64
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["coop  59.5", "fedpgp  59.5"]
    assert legend.get_title().get_text() == "HM of Local, Base, Novel"


def test_a_contour_of_the_trade_off_joins_equal_harmonic_means_of_its_two_axes(compared):
    (axes,) = comparison_figures.local_against_novel(compared.groups).axes
    (contours,) = [drawn for drawn in axes.collections if hasattr(drawn, "levels")]
    assert [level for level in contours.levels if level != round(level)] == []  # the labels are whole numbers
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        for local, novel in path.vertices:
            assert 2 / (1 / local + 1 / novel) == pytest.approx(level, abs=0.05)


def test_bars_are_means_and_missing_metrics_have_none(compared):
    (axes,) = comparison_figures.bars(compared.groups, ["local", "novel", "held_out"]).axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers[1::2]]
    assert np.array(heights) == pytest.approx(np.array([[81.5, 50, np.nan], [70, 63, np.nan]]), nan_ok=True)


def test_two_settings_span_the_heat_map(made_run):
    cells = {(1, 2): 50, (1, 4): 60, (4, 2): 70}  # nobody ran rank 4 with 4 shots
    entries = [Entry(made_run(f"method.rank={r}", f"protocol.shots={s}", test_hm=[v])) for (r, s), v in cells.items()]
    figure = comparison_figures.settings_heat_map(compare(entries).groups, "method.rank", "protocol.shots", "hm")
    axes = figure.axes[0]
    assert np.array(axes.images[0].get_array().filled(np.nan)) == pytest.approx(
        np.array([[50, 60], [70, np.nan]]), nan_ok=True
    )
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1", "4"]
    assert sorted(text.get_text() for text in axes.texts) == ["50.0", "60.0", "70.0"]


def test_rules_and_attacks_span_a_heat_map_without_being_numbers(made_run):
    attack = "federation.attack={kind: sign_flip, fraction: 0.2}"
    cells = {("fedavg", None): 70, ("fedavg", attack): 20, ("median", None): 60, ("median", attack): 50}
    entries = [
        Entry(made_run(f"federation.server={{name: {rule}}}", *filter(None, [own]), test_hm=[value]))
        for (rule, own), value in cells.items()
    ]
    groups = compare(entries).groups
    keys = "federation.server.name", "federation.attack.kind"
    axes = comparison_figures.settings_heat_map(groups, *keys, "hm").axes[0]
    assert axes.images[0].get_array().tolist() == [[70, 20], [60, 50]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["fedavg", "median"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["none", "sign_flip"]
    assert "grid-fedpgp" in [figure.name for figure in all_figures(compare(entries))[0]]


def test_accuracy_is_drawn_against_the_one_setting_that_differs(made_run):
    private = ["privacy.level=client", "privacy.delta=1e-3"]
    entries = [
        Entry(made_run(*private, f"privacy.epsilon={epsilon}", f"seed={seed}", test_hm=[50 + epsilon + seed]))
        for epsilon in (4, 1, 16)
        for seed in (1, 3)
    ]
    entries.append(Entry(made_run("seed=1", test_hm=[80])))
    assert "setting" in [figure.name for figure in all_figures(compare(entries))[0]]
    figure = comparison_figures.against_setting(compare(entries).groups, "privacy.epsilon", "hm")
    (axes,) = figure.axes
    (line, _, (bars,)) = axes.containers[0]
    assert line.get_xydata().tolist() == [[1, 53], [4, 56], [16, 68]]
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([53 - 2**0.5, 53 + 2**0.5])
    assert (axes.get_xscale(), axes.lines[-1].get_ydata()) == ("log", [80, 80])
    without = [*entries, Entry(made_run("seed=1", "federation.lr=0.5", test_hm=[70]))]
    (axes,) = comparison_figures.against_setting(compare(without).groups, "privacy.epsilon", "hm").axes
    assert axes.lines[-1].get_ydata() == [75, 75]  # the mean of the two groups without the setting
    entries.append(Entry(made_run(*private, "privacy.epsilon=1", "method.rank=2", test_hm=[50])))
    assert "setting" not in [figure.name for figure in all_figures(compare(entries))[0]]  # two points of epsilon 1


def test_the_held_out_matrix_ends_in_the_mean_of_its_row():
    figure = comparison_figures.held_out_matrix(
        {"art": {"photo": 60.0, "sketch": 70.0}, "photo": {"sketch": 50.0}}, "fedpgp"
    )
    values = np.array(figure.axes[0].images[0].get_array().filled(np.nan))
    assert values == pytest.approx(np.array([[60, 70, 65], [np.nan, 50, 50]]), nan_ok=True)


def test_the_held_out_matrix_has_one_order_of_domains_and_clients():
    figure = comparison_figures.held_out_matrix({"art": {"photo": 60.0}, "photo": {"art": 50.0}}, "fedpgp")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["art", "photo", "mean"]


def test_two_settings_that_vary_together_span_no_heat_map(made_run):
    pairs = [(1, 1), (4, 4)]
    entries = [Entry(made_run(f"method.rank={r}", f"protocol.shots={s}", test_hm=[50])) for r, s in pairs]
    assert "grid-fedpgp" not in [figure.name for figure in all_figures(compare(entries))[0]]
    entries.append(Entry(made_run("method.rank=1", "protocol.shots=4", test_hm=[50])))
    assert "grid-fedpgp" in [figure.name for figure in all_figures(compare(entries))[0]]


def test_convergence_shows_rounds_and_bytes_and_a_level_for_untrained_methods():
    curves = {"a": Curve([1, 2], [50.0, 60.0], [1.0, 1.0], [3.0, 6.0]), "zero": Curve([0], [40.0], [0.0], [0.0])}
    left, right = comparison_figures.convergence(curves, "hm").axes
    assert left.lines[0].get_xydata().tolist() == [[1, 50], [2, 60]]
    assert right.lines[0].get_xydata().tolist() == [[3, 50], [6, 60]]
    assert left.lines[1].get_ydata() == [40, 40]
    once = comparison_figures.convergence(
        {"a": Curve([20], [50.0], [1.0], [3.0])}, "hm"
    ).axes  # trained, evaluated at the end
    assert [axes.lines[0].get_xydata().tolist() for axes in once] == [[[20, 50]], [[3, 50]]]


def test_runs_of_a_plug_in_are_shown_without_importing_it(made_run):
    """The module does not exist, so that any import of it fails."""
    personal = {"secret": torch.ones(2, 3)}
    runs = [made_run("method.name=no_such_module:Mine", f"seed={seed}", test_hm=[50, 51 + seed], personal=personal)
            for seed in (1, 2)]  # fmt: skip
    compared = compare([Entry(path) for path in runs])
    assert compared.labels == ["no_such_module:Mine"]
    assert comparison_tables.accuracies(compared, "").rows[0][2].text == "52.50 ± 0.71"
    figures, notes = all_figures(compared)
    assert ([figure.name for figure in figures], notes) == (["bars", "convergence"], [])
    with pytest.raises(RunError, match=r"no_such_module:Mine has no adapters that can be analyzed; give a run of fedl"):
        adapters.adapters(runs[0])
    with pytest.raises(RunError, match="no_such_module:Mine adds no personal part to a global prompt"):
        learned.personal_parts(runs[0])


def test_only_the_first_scenarios_are_drawn(made_run):
    entries = [Entry(made_run(f"protocol.shots={s}", partition=f"p{s}", test_hm=[50, 60])) for s in range(1, 9)]
    figures, notes = all_figures(compare(entries))
    drawn = [figure.title for figure in figures if figure.name.startswith("convergence")]
    assert drawn == [f"Convergence (shots={shots})" for shots in range(1, MAX_SCENARIOS + 1)]
    assert f"figures show the first {MAX_SCENARIOS} of 8 scenarios (data, partitions, protocols)" in notes


def test_all_groups_in_a_figure_look_different():
    for look in (style.item_style, style.area_style):
        assert len({tuple(look(number).values()) for number in range(MAX_GROUPS)}) == MAX_GROUPS
    dozen = [(*style.item_style(number).values(), style.area_style(number)["hatch"]) for number in range(12)]
    assert all(len(set(looks)) == 12 for looks in zip(*dozen, strict=True))


def test_the_spectrum_shows_energy_by_rank():
    left, right = comparison_figures.spectra(np.array([[3.0, 4.0][::-1], [0.0, 0.0]]), "x").axes
    assert left.lines[0].get_ydata().tolist() == [4, 3]
    assert right.lines[0].get_ydata().tolist() == pytest.approx([64, 100])  # 16 and 25 of 25
    assert right.lines[1].get_ydata().tolist() == [0, 0]  # a part that is zero


def test_figures_are_files_of_two_kinds_the_same_every_time(tmp_path, compared):
    for name in ("one", "two"):
        style.save(comparison_figures.bars(compared.groups, ["local"]), tmp_path / name / "bars")
    for kind in ("png", "svg"):
        assert (tmp_path / "one" / f"bars.{kind}").read_bytes() == (tmp_path / "two" / f"bars.{kind}").read_bytes()
    with Image.open(tmp_path / "one" / "bars.png") as image:
        assert image.format == "PNG"


def test_a_title_longer_than_its_figure_is_not_cut():
    def width(label):
        with Image.open(
            io.BytesIO(style.encoded(comparison_figures.similarity(np.eye(2), ["a", "b"], label), "png"))
        ) as image:
            return image.width

    assert width("a label of many letters, with settings, seed 1") > width("short") + 100


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 20])
def test_long_names_of_clients_leave_room_for_the_matrix(count):
    figure = comparison_figures.similarity(np.eye(count), ["a client with a name of many words"] * count, "short")
    figure.draw_without_rendering()
    axes, page = figure.axes[0], figure.bbox.padded(1)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert {label.get_text() for label in labels} == {"a client with a name of…"}
        assert all(page.contains(*corner) for label in labels for corner in label.get_window_extent().corners())
    assert min(axes.get_window_extent().size) > figure.dpi  # an inch of the matrix is left


@pytest.mark.filterwarnings("error")
def test_long_labels_of_groups_leave_room_for_the_axes(made_run):
    settings = ", ".join(f"setting_{number}={number}" for number in range(12))
    values = {metric: [50, 60] for metric in ("test_local", "test_base", "test_novel", "test_hm")}
    entries = [Entry(made_run(f"method.name={name}", **values), f"{name}, {settings}") for name in ("coop", "fedpgp")]
    figures, _ = all_figures(compare(entries))
    assert {figure.name for figure in figures} >= {"tradeoff", "bars", "convergence"}
    for figure in figures:
        figure.figure.draw_without_rendering()
        for axes in figure.figure.axes[:1]:
            assert min(axes.get_window_extent().size) > figure.figure.dpi, figure.name


def test_all_figures_lists_what_could_not_be_drawn(compared):
    figures, notes = all_figures(compared)
    names = {figure.name for figure in figures}
    assert names == {"tradeoff", "bars", "spectrum-2", "similarity-2"}  # one round is no curve
    assert len(notes) == 1  # the words need the backbone, and that is another one
    assert "backbone.weights: random are not the weights of the run" in notes[0]
    (first, *_) = compared.groups[1].runs.values()
    next((first.path / "checkpoints").iterdir()).unlink()
    figures, notes = all_figures(compared)
    assert {"spectrum-2", "similarity-2"}.isdisjoint(figure.name for figure in figures)
    assert len(notes) == 1
    assert "not drawn: prompts of fedpgp, seed 1:" in notes[0]
    assert "checkpoint cannot be read" in notes[0]


def test_colours_are_distinct_with_any_vision_and_readable_on_white():
    linear = np.array([[int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)] for color in style.COLORS])
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    assert contrast.min() > 2.2  # that of the yellow of Okabe and Ito is 1.3
    for vision, seen in VISIONS.items():
        colors = lab(np.clip(linear @ np.array(seen).T, 0, 1))
        apart = np.linalg.norm(colors[:, None] - colors[None], axis=2)
        assert apart[~np.eye(len(colors), dtype=bool)].min() > 15, vision
