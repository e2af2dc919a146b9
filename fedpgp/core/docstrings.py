"""Reads docstrings as sections with headings: prose to be wrapped, list items, and lines that stay as they are."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

SUMMARY, NOTES, DEPARTURES = "In short", "Notes", "Departures from the paper or its code"
HEADING = re.compile(r"([A-Z][\w-]*(?: [\w-]+){0,2}):\s")
"""`Legend: ...`, `Privacy: ...`: up to three words."""
BEFORE_DEPARTURES = re.compile(r"(?<=\.)\s+(?=Departs )")


@dataclass(frozen=True)
class Block:
    """A paragraph or a list item on one line, or lines as they are."""

    text: str
    kind: str = "prose"  # prose | item | verbatim


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    heading: str
    blocks: tuple[Block, ...]


def sections(docstring: str) -> list[Section]:
    """The sections of a docstring, in its order.

    The first paragraph is the summary. A later one has the heading that it starts with (`Legend: ...`), that of
    departures from where it says `Departs`, or none. Paragraphs without a heading are notes, unless they start with a
    small letter or follow lines that are indented: then they continue the section. Indented lines stay as they are, and
    a line that starts with `- ` starts a list item.
    """
    found: list[tuple[str, list[Block]]] = []
    for heading, blocks in _parts(inspect.cleandoc(docstring)):
        title = heading or (found[-1][0] if found and _continues(blocks, found[-1][1]) else NOTES if found else SUMMARY)
        if found and found[-1][0] == title:
            found[-1][1].extend(blocks)
        else:
            found.append((title, blocks))
    return [Section(heading, tuple(blocks)) for heading, blocks in found]


def _parts(text: str) -> Iterator[tuple[str, list[Block]]]:
    """The paragraphs with their headings (empty: none)."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if not paragraph:
            continue
        first, *departures = BEFORE_DEPARTURES.split(paragraph, maxsplit=1)
        if first.startswith("Departs "):
            first, departures = "", [paragraph]
        named = HEADING.match(first) if number else None
        if first:
            yield (named[1], _blocks(first[named.end() :])) if named else ("", _blocks(first))
        for part in departures:
            yield DEPARTURES, _blocks(part)


def _blocks(paragraph: str) -> list[Block]:
    if paragraph.startswith(" "):
        return [Block(inspect.cleandoc("\n" + paragraph), "verbatim")]
    blocks: list[Block] = []
    for line in paragraph.splitlines():
        if line.startswith("- "):
            blocks.append(Block(line.removeprefix("- "), "item"))
        elif blocks:
            blocks[-1] = Block(f"{blocks[-1].text} {line.strip()}", blocks[-1].kind)
        else:
            blocks.append(Block(line))
    return blocks


def _continues(blocks: list[Block], before: list[Block]) -> bool:
    """Whether a paragraph belongs to the one before it: a formula, what follows a formula, or a small letter."""
    return "verbatim" in (blocks[0].kind, before[-1].kind) or blocks[0].text[:1].islower()
