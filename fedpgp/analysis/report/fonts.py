"""Fonts for names in any script: those of the machine that have the characters that the default font lacks."""

import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

log = logging.getLogger(__name__)

INVISIBLE = ("Cc", "Cf", "Mn")
"""Categories of characters that may lack a glyph of their own: line ends, joiners, variation selectors."""
PLACEHOLDERS = "Last Resort"
"""A font with a box for every character."""


def use_fonts(figure: Figure) -> list[Text]:
    """Add fonts to the texts of a figure that have characters which the default font lacks; changes no other figure.

    Returns all texts of the figure, which take long to find.
    Logs a warning, once in a process, if no font of the machine has a character.
    """
    found = [one for one in figure.findobj(Text) if isinstance(one, Text)]
    texts = [text for text in found if not text.get_text().isascii()]
    families, missing = _families(_visible("".join(text.get_text() for text in texts)))
    for text in texts if families else ():
        text.set_fontfamily([*text.get_fontfamily(), *(one for one in families if one not in text.get_fontfamily())])
    if missing:
        _warn_of_boxes()
    return found


def font_file(text: str) -> str | None:
    """The file of a font that has all characters of a text; None, with the warning of `use_fonts`: there is none."""
    shown = _visible(text)
    files = (findfont(FontProperties()), *(entry.fname for entry in _candidates()))
    found = next((file for file in files if _glyphs(file, shown) == set(shown)), None)
    if found is None:
        _warn_of_boxes()
    return found


def _visible(text: str) -> str:
    """The characters that need a glyph, each once."""
    return "".join(sorted({one for one in text if unicodedata.category(one) not in INVISIBLE}))


@functools.cache
def _families(characters: str) -> tuple[tuple[str, ...], bool]:
    """The fewest fonts that have what the default font lacks of some characters; and whether any is still missing."""
    left = set(characters) - _glyphs(findfont(FontProperties()), characters)
    found = {entry.name: _glyphs(entry.fname, left) for entry in _candidates()} if left else {}
    chosen = []
    while left and found:
        best = max(found, key=lambda name: len(found[name] & left))  # of equal ones the first
        if not found[best] & left:
            break
        chosen.append(best)
        left -= found[best]
    return tuple(chosen), bool(left)


def _candidates() -> Iterator[FontEntry]:
    """The upright fonts of the machine, one for each name: regular ones first, those without serifs first."""
    upright = [one for one in fontManager.ttflist if one.style == "normal" and PLACEHOLDERS not in one.name]
    ordered = sorted(upright, key=lambda one: ("Sans" not in one.name, one.weight not in (400, "normal"), one.name))
    names = set()
    for entry in ordered:
        if entry.name not in names:
            names.add(entry.name)
            yield entry


def _glyphs(path: str, characters: Iterable[str]) -> set[str]:
    """Those of the characters that a font can draw; none if matplotlib cannot use it, for example as it has colours."""
    try:
        font = get_font(path)
        font.set_size(10, 72)
        found = {one for one in characters if font.get_char_index(ord(one))}
        for one in found:
            font.load_char(ord(one))
    except (OSError, RuntimeError):
        return set()
    return found


@functools.cache
def _warn_of_boxes() -> None:
    log.warning(
        "figures: no font of this machine has some characters of the names, so they are drawn as boxes or question "
        "marks; install a font for them, for example one of the Noto fonts"
    )
