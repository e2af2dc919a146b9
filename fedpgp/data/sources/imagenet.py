"""ImageNet, and the data sets of its classes that are for tests only: V2, Sketch, A and R."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.text import first_of
from fedpgp.data.sources.base import SINGLE_DOMAIN, Scan, own_folder
from fedpgp.data.sources.folder import FolderSource
from fedpgp.data.sources.listing import check_name
from fedpgp.data.sources.lists import read_lines

CLASSES = 1000
NAMES, NEIGHBOUR = "classnames.txt", "imagenet"
OTHER_NAMES: Mapping[str, str] = {"n04008634": "projectile", "n04355933": "sunglass"}
"""ImageNet's own words for two classes that have the name of another class in CLIP's list."""
_GET_NAMES = f"{NAMES}, linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md -> ROOT/{NAMES}"


class ImageNetSource(FolderSource):
    """Class folders of ImageNet's classes, named by WordNet ids.

    Classes are in the order of these ids, which is ImageNet's. Their names are those of `classnames.txt` (lines
    `WNID NAME`), in `data.root` or in the folder `imagenet` beside it. CoOp's file has CLIP's names, of which `missile`
    and `sunglasses` occur twice, with equal prompts; here one of the two is `OTHER_NAMES`.
    """

    layout = "WNID/image"
    layouts: ClassVar[tuple[tuple[str, ...], ...]]  # possible folders of the class folders
    splits: ClassVar[tuple[str, ...]] = ("test",)  # of the folders of a layout
    classes: ClassVar[int] = CLASSES  # how many class folders there must be
    by_number: ClassVar[bool] = False  # class folders are ImageNet's numbers, 0 to 999

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        given = self.root
        is_inner = given.name.startswith(NEIGHBOUR) and (given.name,) in self.layouts  # such as imagenet-a itself
        self.root, self._parts = own_folder(given.parent if is_inner else given, type(self), *self.layouts)
        around = (given, self.root, self.root / NEIGHBOUR, self.root.parent / NEIGHBOUR)
        self._names_at = next((path for folder in around if (path := folder / NAMES).is_file()), self.root / NAMES)

    def scan(self) -> Scan:
        """List the images; raise `DataError` if class folders are unknown or missing."""
        names = self._names()
        scan = super().scan()
        if unknown := [folder for folder in scan.class_names if folder not in names]:
            raise DataError(f"{self.root}: {first_of(unknown)} is not a class of {self._names_at}; move it away")
        if len(scan.class_names) != self.classes:
            raise DataError(
                f"{self.root}: {len(scan.class_names)} class folders, not {self.classes}; unpack all of {self.name} "
                "(a part of it: data.name=folder)"
            )
        class_names = tuple(names[folder] for folder in scan.class_names)
        return replace(scan, class_names=class_names, numbered=True, test_only="train" not in self.splits)

    def _names(self) -> dict[str, str]:
        """The name of each class by its folder, in ImageNet's order."""
        path, names = self._names_at, dict[str, str]()
        check_name(path)
        for line in read_lines(path):
            wnid, _, name = line.partition(" ")
            if not re.fullmatch(r"n\d{8}", wnid) or not name.strip() or wnid in names:
                raise DataError(f"{path}: {line!r} is not WNID NAME, or its WNID occurs twice; fetch the file again")
            names[wnid] = name.strip()
        if len(names) != CLASSES:
            raise DataError(f"{path}: {len(names)} classes, not ImageNet's {CLASSES}; fetch the file again")
        counts = Counter(names.values())
        ordered = {
            wnid: OTHER_NAMES.get(wnid, name) if counts[name] > 1 else name for wnid, name in sorted(names.items())
        }
        return {str(number): name for number, name in enumerate(ordered.values())} if self.by_number else ordered

    def _groups(self) -> list[tuple[str, str, str | None]]:
        return [(folder, SINGLE_DOMAIN, split) for folder, split in zip(self._parts, self.splits, strict=True)]


class ImageNet(ImageNetSource):
    """train for training and val, the official validation set, for testing, as everybody reports it."""

    name, splits = "imagenet", ("train", "test")
    layout = "images/train/WNID/image and images/val/WNID/image (or both without images/)"
    layouts = (("images/train", "images/val"), ("train", "val"))
    folders = (NEIGHBOUR, "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
    steps = (
        "https://image-net.org/download-images.php (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, unpacked into a "
        "folder per class) -> ROOT/images/train/WNID, ROOT/images/val/WNID",
        _GET_NAMES,
    )


class ImageNetV2(ImageNetSource):
    """The matched-frequency images; class folders are ImageNet's numbers, 0 to 999."""

    name, layout, by_number = "imagenet_v2", "0 to 999/image", True
    layouts = (("imagenetv2-matched-frequency-format-val",),)
    folders = ("imagenetv2",)
    steps = (
        "imagenetv2-matched-frequency.tar.gz, https://huggingface.co/datasets/vaishaal/ImageNetV2 -> "
        "ROOT/imagenetv2-matched-frequency-format-val/0 to 999",
        _GET_NAMES,
    )


class ImageNetSketch(ImageNetSource):
    """Sketches of all classes."""

    name = "imagenet_sketch"
    layouts = (("images",), ("sketch",))
    folders = ("imagenet-sketch",)
    steps = ("https://github.com/HaohanWang/ImageNet-Sketch -> ROOT/images/WNID", _GET_NAMES)


class ImageNetA(ImageNetSource):
    """Natural adversarial images of 200 classes."""

    name, classes = "imagenet_a", 200
    layouts = (("imagenet-a",),)
    folders = ("imagenet-adversarial",)
    steps = ("https://github.com/hendrycks/natural-adv-examples -> ROOT/imagenet-a/WNID", _GET_NAMES)


class ImageNetR(ImageNetSource):
    """Renditions of 200 classes."""

    name, classes = "imagenet_r", 200
    layouts = (("imagenet-r",),)
    folders = ("imagenet-rendition",)
    steps = ("https://github.com/hendrycks/imagenet-r -> ROOT/imagenet-r/WNID", _GET_NAMES)
