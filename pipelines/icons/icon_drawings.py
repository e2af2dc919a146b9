"""Icon drawings for the embedded data set and its model: fetched from npm by name, rasterised, matched to concepts."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "fedpgp-icons"
MASTER = 64
"""height and width of a rasterised drawing"""
SIZE = 48
"""height and width of a rendered picture"""
RASTERISER = "resvg_py==0.5.0"


@dataclass(frozen=True)
class Package:
    """One npm package with the drawings of a family; `licence` is what its metadata must say."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True)
class Family:
    """One artist's or project's set of drawings."""

    title: str
    packages: tuple[Package, ...]
    holder: str
    """copyright line, as in the project's own licence file"""
    federated: bool
    """True: a domain of the data set; False: seen in pretraining only"""
    colour: bool = False


def _iconify(name: str, version: str, licence: str) -> Package:
    return Package(f"@iconify-json/{name}", version, licence)


FAMILIES: Mapping[str, Family] = {
    "font_awesome": Family(
        "Font Awesome Free",
        (_iconify("fa6-solid", "1.2.4", "CC-BY-4.0"), _iconify("fa6-regular", "1.2.4", "CC-BY-4.0")),
        "Copyright 2024 Fonticons, Inc. (https://fontawesome.com)",
        True,
    ),
    "tabler": Family(
        "Tabler Icons", (_iconify("tabler", "1.2.41", "MIT"),), "Copyright (c) 2020-2026 Paweł Kuna", True
    ),
    "lucide": Family(
        "Lucide",
        (_iconify("lucide", "1.2.137", "ISC"),),
        "Copyright (c) 2026 Lucide Icons and Contributors; parts (MIT) Copyright (c) 2013-present Cole Bemis",
        True,
    ),
    "bootstrap": Family(
        "Bootstrap Icons", (_iconify("bi", "1.2.7", "MIT"),), "Copyright (c) 2019-2024 The Bootstrap Authors", True
    ),
    "ionicons": Family(
        "Ionicons", (_iconify("ion", "1.2.7", "MIT"),), "Copyright (c) 2015-present Ionic (http://ionic.io/)", True
    ),
    "fluent_contrast": Family(
        "Fluent Emoji High Contrast",
        (_iconify("fluent-emoji-high-contrast", "1.2.6", "MIT"),),
        "Copyright (c) Microsoft Corporation",
        True,
    ),
    "fluent_flat": Family(
        "Fluent Emoji Flat",
        (_iconify("fluent-emoji-flat", "1.2.6", "MIT"),),
        "Copyright (c) Microsoft Corporation",
        True,
        colour=True,
    ),
    "noto": Family(
        "Noto Emoji", (_iconify("noto", "1.2.9", "Apache-2.0"),), "Copyright Google Inc.", True, colour=True
    ),
    "hugeicons": Family("Hugeicons", (_iconify("hugeicons", "1.2.35", "MIT"),), "Copyright Hugeicons", True),
    "boxicons": Family(
        "Boxicons 2",
        (_iconify("bx", "1.2.3", "MIT"), _iconify("bxs", "1.2.3", "MIT")),
        "Copyright Boxicons",
        True,
    ),
    "icon_park": Family(
        "IconPark",
        (_iconify("icon-park-outline", "1.2.4", "Apache-2.0"), _iconify("icon-park-solid", "1.2.4", "Apache-2.0")),
        "Copyright ByteDance",
        True,
    ),
    "unicons": Family("Unicons", (_iconify("uil", "1.2.3", "Apache-2.0"),), "Copyright Iconscout", True),
    "carbon": Family("Carbon", (_iconify("carbon", "1.2.29", "Apache-2.0"),), "Copyright IBM Corp.", True),
    "fluent_system": Family(
        "Fluent UI System Icons",
        (_iconify("fluent", "1.2.60", "MIT"),),
        "Copyright Microsoft Corporation",
        True,
    ),
    "game_icons": Family(
        "Game-icons.net",
        (_iconify("game-icons", "1.2.4", "CC-BY-3.0"),),
        "Copyright GameIcons: Lorc, Delapouite and contributors (https://game-icons.net)",
        True,
    ),
    "fxemoji": Family(
        "FxEmojis", (_iconify("fxemoji", "1.2.2", "Apache-2.0"),), "Copyright Mozilla", True, colour=True
    ),
    "material": Family(
        "Material Design Icons", (_iconify("mdi", "1.2.3", "Apache-2.0"),), "Copyright Pictogrammers", False
    ),
    "phosphor": Family("Phosphor Icons", (_iconify("ph", "1.2.2", "MIT"),), "Copyright (c) 2023 Phosphor Icons", False),
    "remix": Family("Remix Icon 2.5", (_iconify("ri", "1.1.0", "Apache-2.0"),), "Copyright Remix Design", False),
    "mingcute": Family(
        "MingCute Icon", (_iconify("mingcute", "1.2.8", "Apache-2.0"),), "Copyright MingCute Design", False
    ),
    "solar": Family("Solar", (_iconify("solar", "1.2.13", "CC-BY-4.0"),), "Copyright 480 Design", False),
    "iconoir": Family("Iconoir", (_iconify("iconoir", "1.2.11", "MIT"),), "Copyright (c) 2021 Luca Burgio", False),
    "twemoji": Family(
        "Twemoji",
        (_iconify("twemoji", "1.2.5", "CC-BY-4.0"),),
        "Copyright 2019 Twitter, Inc and other contributors",
        False,
        colour=True,
    ),
    "emojione": Family(
        "EmojiOne 2",
        (_iconify("emojione", "1.2.3", "CC-BY-4.0"),),
        "Copyright EmojiOne (https://www.emojione.com)",
        False,
        colour=True,
    ),
}

STYLE_SUFFIX = re.compile(
    r"-(outline|sharp|filled|fill|line|bold|thin|light|duotone|regular|linear|broken|variant|alt|solid|rounded|\d+)$"
)
SKIPPED = re.compile(r"(light|medium|dark)-skin|skin-tone|^flag-|keycap|^letter-|^number-|-letter-|alpha-|numeric-")
BRANDS = re.compile(r"brand|logo", re.IGNORECASE)


@dataclass(frozen=True)
class Drawings:
    """All drawings of some families, one per row."""

    family: np.ndarray  # names of families, str [n]
    name: np.ndarray  # a drawing's own name in its package, str [n]
    stem: np.ndarray  # the name without its style, str [n]
    concept: np.ndarray  # index into the concepts, -1: none. int [n]
    index: np.ndarray  # row in `grey` or `colour`. int [n]
    is_colour: np.ndarray  # bool [n]
    grey: np.ndarray  # alpha of the one-colour drawings, uint8 [g, MASTER, MASTER]
    colour: np.ndarray  # RGBA of the others, uint8 [c, MASTER, MASTER, 4]

    def __len__(self) -> int:
        return len(self.name)

    def premultiplied(self, rows: Sequence[int] | np.ndarray, ink: Tensor) -> Tensor:
        """The drawings in the inks [n, 3] (colour drawings keep theirs) as premultiplied RGB and alpha [n, 4, h, w]."""
        rows = np.asarray(rows)
        out = torch.empty(len(rows), 4, MASTER, MASTER)
        for flag in (False, True):
            where = np.flatnonzero(self.is_colour[rows] == flag)
            if not len(where):
                continue
            index = self.index[rows[where]]
            if flag:
                pixels = torch.from_numpy(self.colour[index]).permute(0, 3, 1, 2).float() / 255
                out[where] = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)
            else:
                alpha = torch.from_numpy(self.grey[index]).float()[:, None] / 255
                out[where] = torch.cat([alpha * ink[where, :, None, None], alpha], 1)
        return out


def concepts() -> dict[str, list[str]]:
    """Concept -> its names in the families, in alphabetical order."""
    table = read_table()["concepts"]
    return {name: [str(word) for word in table[name]] for name in sorted(table)}


def read_table() -> dict[str, Any]:
    """The hand-made table: concepts, homonyms, classes of the data set."""
    table: dict[str, Any] = yaml.safe_load((HERE / "icon_concepts.yaml").read_text(encoding="utf-8"))
    return table


def load(families: Sequence[str], cache: Path, say: Callable[[str], None]) -> Drawings:
    """Fetch and rasterise the families, or read them from the cache."""
    parts = [_family(family, cache, say) for family in families]
    greys = np.cumsum([0, *(len(part["grey"]) for part in parts)])
    colours = np.cumsum([0, *(len(part["colour"]) for part in parts)])
    return Drawings(
        family=np.concatenate([np.full(len(p["name"]), f) for f, p in zip(families, parts, strict=True)]),
        name=np.concatenate([part["name"] for part in parts]),
        stem=np.concatenate([part["stem"] for part in parts]),
        concept=np.concatenate([_concepts_of(f, part) for f, part in zip(families, parts, strict=True)]),
        index=np.concatenate(
            [
                part["index"] + np.where(part["is_colour"], colours[number], greys[number])
                for number, part in enumerate(parts)
            ]
        ),
        is_colour=np.concatenate([part["is_colour"] for part in parts]),
        grey=np.concatenate([part["grey"] for part in parts]),
        colour=np.concatenate([part["colour"] for part in parts]),
    )


def _concepts_of(family: str, part: Mapping[str, np.ndarray]) -> np.ndarray:
    """The number of the concept that each drawing of a family shows; -1: none. int [n]"""
    table, order = read_table(), list(concepts())
    known = {word: order.index(name) for name, words in concepts().items() for word in words}
    known |= {word: order.index(name) for name, words in table["own_names"].get(family, {}).items() for word in words}
    homonyms = set(table["homonyms"])

    def concept(name: str, word: str) -> int:
        return -1 if {f"{family}:{name}", f"{family}:{word}"} & homonyms else known.get(word, -1)

    return np.array([concept(*names) for names in zip(part["name"], part["stem"], strict=True)])


def checked_metadata(package: Package, cache: Path) -> dict[str, Any]:
    """Version and licence of the drawings, as the package states them; an unexpected licence is an error."""
    folder = fetch(package, cache)
    about, info = (json.loads((folder / file).read_text(encoding="utf-8")) for file in ("package.json", "info.json"))
    said = {about["license"].replace(" ", "-"), info["license"]["spdx"]}
    if said != {package.licence} or about["version"] != package.version:
        raise SystemExit(f"{package.name}: expected {package.version} under {package.licence}, found {said}")
    return {
        "drawings": info.get("version") or "unnumbered",
        "url": info["license"].get("url", ""),
        "author": info["author"],
    }


def fetch(package: Package, cache: Path) -> Path:
    """The unpacked npm package."""
    folder = cache / f"{package.name.split('/')[-1]}-{package.version}"
    if not (folder / "package" / "icons.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(folder / archive) as tar:
            tar.extractall(folder, filter="data")
    return folder / "package"


def _family(family: str, cache: Path, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    key = hashlib.sha256(repr((FAMILIES[family], MASTER, RASTERISER, STYLE_SUFFIX, SKIPPED)).encode()).hexdigest()[:12]
    path = cache / f"{family}-{key}.npz"
    if not path.is_file():
        say(f"rasterising {family}")
        columns = list(zip(*_rasterised(FAMILIES[family], cache), strict=True))
        colour = np.array([pixels.ndim == 3 for pixels in columns[1]])
        shape = {False: (0, MASTER, MASTER), True: (0, MASTER, MASTER, 4)}
        stacks = {
            flag: np.array([p for p, is_colour in zip(columns[1], colour, strict=True) if is_colour == flag], np.uint8)
            for flag in shape
        }
        index = np.where(colour, np.cumsum(colour), np.cumsum(~colour)) - 1
        np.savez_compressed(
            path,
            name=np.array(columns[0]),
            stem=np.array([stem(name) for name in columns[0]]),
            index=index,
            is_colour=colour,
            grey=stacks[False].reshape(-1, *shape[False][1:]),
            colour=stacks[True].reshape(-1, *shape[True][1:]),
        )
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def stem(name: str) -> str:
    """A drawing's name without package and style: solid:car, car-outline, car-2 -> car."""
    name = name.split(":")[-1]
    while (shorter := STYLE_SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def _rasterised(family: Family, cache: Path) -> Iterator[tuple[str, np.ndarray]]:
    resvg = _rasteriser(cache)
    for package in family.packages:
        folder = fetch(package, cache)
        checked_metadata(package, cache)
        icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        metadata = folder / "metadata.json"
        groups = json.loads(metadata.read_text(encoding="utf-8")).get("categories", {}) if metadata.is_file() else {}
        brands = {name for group, names in groups.items() if BRANDS.search(group) for name in names}
        prefix = re.split("[-/]", package.name)[-1] + ":" if len(family.packages) > 1 else ""
        for name, icon in icons["icons"].items():
            if SKIPPED.search(name) or name in brands or "logo" in name:
                continue
            left, top = (icon.get(side, icons.get(side, 0)) for side in ("left", "top"))
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            side = max(width, height)
            box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box}" width="{MASTER}" height="{MASTER}">{icon["body"]}</svg>'
            )
            data = resvg.svg_to_bytes(svg_string=svg, width=MASTER, height=MASTER, skip_system_fonts=True)
            data = base64.b64decode(data) if isinstance(data, str) else bytes(data)
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
            yield prefix + name, pixels if family.colour else pixels[..., 3]


def _rasteriser(cache: Path) -> Any:
    """resvg's Python binding, installed into the cache so that the project does not depend on it."""
    folder = cache / "python"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), RASTERISER]
        subprocess.run(command, check=True)
    sys.path.insert(0, str(folder))
    return importlib.import_module("resvg_py")


@dataclass(frozen=True)
class Look:
    """How each of n drawings is rendered; all tensors have n rows."""

    ink: Tensor  # RGB in 0..1, for one-colour drawings [n, 3]
    paper: Tensor  # RGB of the background [n, 3]
    matrix: Tensor  # rotation, flip and size, from picture to drawing [n, 2, 2]
    shift: Tensor  # in halves of the picture [n, 2]
    blur: Tensor  # bool [n]


STYLES = ("plain", "flip", "rotate", "negative", "small", "blur")
"""plain; upside down; a quarter turn clockwise; light on dark; small; blurred"""


def looks(styles: Tensor, generator: torch.Generator, spread: float = 0.5) -> Look:
    """Seeded variation of colours, size, place and tilt around the styles (indices into STYLES) [n].

    Args:
        spread: how much varies; 0.5 as in the data set, 1: twice as much.
    """
    n = len(styles)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    flip, rotate, negative, small, blur = (styles == STYLES.index(name) for name in STYLES[1:])
    dark = _shade(uniform(0, 1, 3), uniform(0.05, 0.05 + 0.45 * spread))
    light = 1 - (1 - _shade(uniform(0, 1, 3), uniform(0.8, 1))) * uniform(0.1, 0.1 + 0.5 * spread)[:, None]
    swap = negative[:, None]
    scale = torch.where(small, uniform(0.4, 0.5), uniform(0.98 - 0.24 * spread, 0.98))
    angle = uniform(-0.2 * spread, 0.2 * spread) + rotate * (np.pi / 2)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    upside = torch.where(flip, -1.0, 1.0)
    # Columns: where the picture's x and y axes point in the drawing.
    matrix = torch.stack([cosine, sine * upside, -sine, cosine * upside], 1).view(n, 2, 2)
    room = torch.where(small, 0.3, 0.1) * spread
    return Look(
        ink=torch.where(swap, light, dark),
        paper=torch.where(swap, dark, light),
        matrix=matrix.mT,
        shift=uniform(-1, 1, 2) * room[:, None],
        blur=blur,
    )


def _shade(hue: Tensor, value: Tensor) -> Tensor:
    """A random tint [n, 3] of the brightness `value` [n]."""
    return hue / hue.amax(1, keepdim=True).clamp(min=1e-3) * value[:, None]


def render(premultiplied: Tensor, look: Look, size: int = SIZE) -> Tensor:
    """Pictures [n, 3, size, size] in 0..1."""
    n = len(premultiplied)
    theta = torch.cat([look.matrix, (look.matrix @ look.shift[..., None])], 2)
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    layers = F.grid_sample(premultiplied, grid, align_corners=False)
    pictures = layers[:, :3] + look.paper[..., None, None] * (1 - layers[:, 3:])
    if look.blur.any():
        soft = F.interpolate(pictures[look.blur], size=size // 5, mode="bilinear", antialias=True)
        pictures[look.blur] = F.interpolate(soft, size=size, mode="bicubic").clamp(0, 1)
    return pictures
