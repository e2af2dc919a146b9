"""Names in any script in figures: fonts of the machine, one plain line if there is none, no warnings of matplotlib."""

import logging
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image

from fedpgp.analysis.report import fonts
from fedpgp.analysis.report.run_figures import contact_sheet
from fedpgp.analysis.report.style import blank, encoded, panel, styled

NAMES = {"chinese": "狐狗", "devanagari": "लोमड़ी", "emoji": "🦊🐶", "hangul": "여우"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No answers of other tests, and only the fonts that matplotlib brings."""
    fonts._families.cache_clear()
    fonts._warn_of_boxes.cache_clear()
    own = [one for one in font_manager.fontManager.ttflist if "mpl-data" in one.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    yield
    fonts._families.cache_clear()
    fonts._warn_of_boxes.cache_clear()


@pytest.fixture
def install(tmp_path):
    """Write a font with squares for the characters of a text, and make it known to matplotlib."""

    def installed(family, text):
        pen = TTGlyphPen(None)
        for move, point in (
            (pen.moveTo, (0, 0)),
            (pen.lineTo, (0, 700)),
            (pen.lineTo, (700, 700)),
            (pen.lineTo, (700, 0)),
        ):
            move(point)
        pen.closePath()
        square, codes = pen.glyph(), sorted({ord(one) for one in text})
        glyphs = [".notdef", *(f"u{code:x}" for code in codes)]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(glyphs)
        builder.setupCharacterMap({code: f"u{code:x}" for code in codes})
        builder.setupGlyf(dict.fromkeys(glyphs, square))
        builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (800, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": family, "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        path = tmp_path / f"{family}.ttf"
        builder.save(path)
        font_manager.fontManager.addfont(path)
        return path

    return installed


@styled
def names_at_an_axis(names):
    figure, axes = panel(3, 2)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(names[0])
    return figure


def drawn(names):
    """The bytes of a figure; a warning of matplotlib is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return encoded(names_at_an_axis(names), "png")


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_without_a_font_one_plain_line_says_so_once(name, caplog):
    drawn([name, "dog"])
    drawn(["dog", name, name])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no font of this machine has some characters" in caplog.text
    assert "/" not in caplog.messages[0]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_font_of_the_machine_is_used(name, caplog, install):
    boxes = drawn([name, "dog"])
    caplog.clear()
    fonts._families.cache_clear()
    fonts._warn_of_boxes.cache_clear()
    install("Own Script", name)
    figure = names_at_an_axis([name, "dog"])
    assert figure.axes[0].title.get_fontfamily()[-1] == "Own Script"
    assert figure.axes[0].yaxis.get_ticklabels()[0].get_fontfamily()[-1] == "Own Script"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig("/dev/null", format="png")  # as a reader of `Run.figures` would
        assert encoded(figure, "png") != boxes
    assert not caplog.records


def test_several_scripts_take_several_fonts(caplog, install):
    install("Own One", NAMES["chinese"])
    install("Own Two", NAMES["hangul"])
    figure = names_at_an_axis([*NAMES.values()][::3])
    assert set(figure.axes[0].title.get_fontfamily()[1:]) == {"Own One", "Own Two"}
    assert not caplog.records


def test_latin_names_change_nothing(caplog):
    for name in ("dog", "Hündin", "собака", "σκύλος"):
        assert names_at_an_axis([name]).axes[0].title.get_fontfamily() == ["sans-serif"]
    assert not caplog.records


def test_too_little_room_is_not_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = blank(0.5, 0.5)
        figure.subplots().set_title("a long title " * 4, fontsize=40)
        encoded(figure, "png")


def test_a_contact_sheet_has_the_names_too(tmp_path, caplog, install):
    images = [Image.new("RGB", (8, 8))]
    contact_sheet([("狐", images)], tmp_path / "before.png")
    assert len(caplog.records) == 1
    install("Own Script", "狐")
    contact_sheet([("狐", images)], tmp_path / "after.png")
    assert (tmp_path / "before.png").read_bytes() != (tmp_path / "after.png").read_bytes()
