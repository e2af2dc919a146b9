"""CoOp's data sets, with its split files or, without these, splits made as CoOp makes them; five of them."""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.files import write_durably
from fedpgp.core.text import first_of
from fedpgp.data.class_names import in_order
from fedpgp.data.sources import listing, matlab, splits
from fedpgp.data.sources.base import SINGLE_DOMAIN, Scan, own_folder
from fedpgp.data.sources.folder import ImageFiles
from fedpgp.data.sources.listing import FOLDERS, check_name
from fedpgp.data.sources.lists import listed, read_lines, with_slashes
from fedpgp.data.sources.splits import SPLITS, Item, Split, cut, hold_back, read_json

OWN_SPLIT = "optionally {}, linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md, for CoOp's split"


class CoOpSource(ImageFiles):
    """A data set with `split_zhou_TITLE.json` or, without it, its official annotations.

    A new split is saved beside the images in CoOp's format as `split_seedN_TITLE.json` (N is `data.split_seed`) and
    read from there the next time. Nothing is written to a read-only folder.
    """

    title: ClassVar[str]
    images: ClassVar[str]  # folder of the images; empty: names in lists are relative to the root
    layouts: ClassVar[tuple[tuple[str, ...], ...]] = ()  # possible folders of images; empty: `images` alone
    has_ids: ClassVar[bool] = False  # the official annotations number the classes
    not_classes: ClassVar[tuple[str, ...]] = ()  # folders that CoOp leaves out

    @classmethod
    def names_in_root(cls) -> tuple[str, ...]:
        """The unpacked folder, or what is inside it."""
        return (*cls.folders, *(folder for layout in cls.layouts or [(cls.images,)] for folder in layout if folder))

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        self.root, found = own_folder(self.root, type(self), *(self.layouts or [(self.images,)]))
        self.folder = found[0] if self.images else ""
        self.seed = settings.split_seed

    def scan(self) -> Scan:
        """List the images of the split, all of which must exist."""
        expected = f"split_zhou_{self.title}.json"
        others = [
            entry.name
            for entry in listing.entries(self.root)
            if entry.name.casefold().startswith("split_zhou") and entry.name != expected
        ]
        if others:
            raise DataError(
                f"{self.root}: {', '.join(others)} is not {expected}, the split of {self.name}: rename it if it is "
                "that one, else move it away"
            )
        path = self.root / expected
        numbered = path.exists() or self.has_ids
        if not path.exists():
            path = self.root / f"split_seed{self.seed}_{self.title}.json"
        made = not path.exists()
        split = self.make_split(random.Random(self.seed)) if made else splits.read_split(path)
        source = f"the official lists of {self.name}" if made else path.name
        names = splits.class_names(split, source if made else str(path))
        images = [(item.image, item.label, 0, name) for name in SPLITS for item in split[name]]
        table, left_out = listed(self.root, images, source, self.folder)
        if made:
            splits.save(path, split)
        known = sum((self.root / self.folder / name).is_dir() for name in self.not_classes)
        return Scan(names, (SINGLE_DOMAIN,), table, numbered, left_out - Counter({FOLDERS: known}), self.root)

    def make_split(self, generator: random.Random) -> Split:
        """Make the split from the official annotations."""
        raise NotImplementedError

    def lines(self, *names: str) -> list[str]:
        """Read the lines of an official list, given by the folders and the file below the root."""
        path = self.root
        for name in names:
            check_name(path := path / name)
        return read_lines(path)


class TorchvisionSource(CoOpSource):
    """A data set of CoOp that torchvision downloads."""

    torchvision: ClassVar[str]  # the class of `torchvision.datasets`

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the data set with torchvision."""
        from torchvision import datasets

        getattr(datasets, cls.torchvision)(root, download=True)


class OxfordPets(TorchvisionSource):
    """annotations/trainval.txt and test.txt; ids from 1; a fifth of trainval becomes validation."""

    name, template = "oxford_pets", "a photo of a {}, a type of pet."
    title, images = "OxfordPets", "images"
    folders = ("oxford_pets", "oxford-iiit-pet")
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz -> ROOT/images/*.jpg",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz -> ROOT/annotations/*.txt",
        OWN_SPLIT.format("split_zhou_OxfordPets.json"),
    )
    torchvision = "OxfordIIITPet"
    has_ids = True

    def make_split(self, generator: random.Random) -> Split:
        """Breeds are the file names without their number, in lower case."""
        train, val = hold_back(self._annotated("trainval.txt"), generator)
        return {"train": train, "val": val, "test": self._annotated("test.txt")}

    def _annotated(self, file: str) -> list[Item]:
        path, items = self.root / "annotations" / file, []
        for line in self.lines("annotations", file):
            try:
                image, label, _, _ = line.rsplit(maxsplit=3)
                items.append(Item(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()))
            except ValueError:
                raise DataError(f"{path}: {line!r} is not IMAGE CLASS SPECIES BREED; fetch the file again") from None
        return items


class Flowers102(TorchvisionSource):
    """imagelabels.mat (ids from 1, one per image number) and cat_to_name.json (id -> name)."""

    name, template = "flowers102", "a photo of a {}, a type of flower."
    title, images = "OxfordFlowers", "jpg"
    folders = ("oxford_flowers", "flowers-102", "flowers102")
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz -> ROOT/jpg/*.jpg",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat -> ROOT/imagelabels.mat",
        "cat_to_name.json (class id -> name), linked from CoOp's DATASETS.md -> ROOT/cat_to_name.json",
        OWN_SPLIT.format("split_zhou_OxfordFlowers.json"),
    )
    torchvision = "Flowers102"
    has_ids = True

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the data set with torchvision, and write its class names."""
        from torchvision.datasets import Flowers102 as Flowers

        super().download(root)
        names = getattr(Flowers, "classes", None)
        path = root / "flowers-102" / "cat_to_name.json"
        if names and not path.exists():
            write_durably(path, json.dumps({str(number): name for number, name in enumerate(names, start=1)}).encode())

    def make_split(self, generator: random.Random) -> Split:
        """Classes in the order of their first image, as CoOp shuffles them."""
        names = read_json(self.root / "cat_to_name.json")
        by_class: dict[int, list[str]] = {}
        for number, label in enumerate(self._labels(), start=1):
            by_class.setdefault(label, []).append(f"image_{number:05d}.jpg")
        unnamed = [str(label) for label in by_class if not isinstance(names.get(str(label)), str)]
        if unnamed:
            raise DataError(f"{self.root / 'cat_to_name.json'}: no name for class {first_of(unnamed)}; fetch it again")
        return cut([(label - 1, names[str(label)], files) for label, files in by_class.items()], generator)

    def _labels(self) -> list[int]:
        path = self.root / "imagelabels.mat"
        labels = matlab.read(path, "labels", self.name).tolist()
        wrong = [str(label) for label in labels if label != int(label) or label < 1]
        if wrong:
            raise DataError(f"{path}: class ids count from 1; found {first_of(wrong)}; fetch it again")
        return [int(label) for label in labels]


class DescribableTextures(TorchvisionSource):
    """The official split labels/train1.txt, val1.txt, test1.txt; without these, images/CLASS cut as CoOp does."""

    name, template = "dtd", "{} texture."
    title, images = "DescribableTextures", "images"
    folders = ("dtd", "dtd/dtd")
    torchvision = "DTD"
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz -> ROOT/images, ROOT/labels",
        OWN_SPLIT.format("split_zhou_DescribableTextures.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """Classes are the folders, sorted."""
        check_name(self.root / "labels")
        if not (self.root / "labels").is_dir():
            return cut(class_folders(self.root / self.folder), generator)
        return _labelled({name: read_lines(self.root / "labels" / f"{name}1.txt") for name in SPLITS})


class Food101(TorchvisionSource):
    """The official meta/train.txt and test.txt (or .json), a fifth of train for validation; else cut as CoOp does."""

    name, template = "food101", "a photo of {}, a type of food."
    title, images = "Food101", "images"
    folders = ("food-101", "food101")
    torchvision = "Food101"
    steps = (
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz -> ROOT/images/CLASS, ROOT/meta/*.txt",
        OWN_SPLIT.format("split_zhou_Food101.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """Classes are the folders, sorted."""
        check_name(self.root / "meta")
        if not (self.root / "meta").is_dir():
            return cut(class_folders(self.root / self.folder), generator)
        official = _labelled({name: self._meta(name) for name in ("train", "test")})
        train, val = hold_back(official["train"], generator)
        return {"train": train, "val": val, "test": official["test"]}

    def _meta(self, name: str) -> list[str]:
        path = self.root / "meta" / f"{name}.txt"
        if path.exists():
            lines = read_lines(path)
        else:
            lines = [str(line) for files in read_json(path.with_suffix(".json")).values() for line in files]
        return [f"{line}.jpg" for line in lines]


class Caltech101(TorchvisionSource):
    """101_ObjectCategories/CLASS without the two folders that CoOp leaves out; four classes are renamed as there."""

    name = "caltech101"
    title, images = "Caltech101", "101_ObjectCategories"
    folders = ("caltech-101", "caltech101")
    torchvision = "Caltech101"
    steps = (
        "https://data.caltech.edu/records/mzrjq-6wc02 (101_ObjectCategories.tar.gz) -> ROOT/101_ObjectCategories",
        OWN_SPLIT.format("split_zhou_Caltech101.json"),
    )
    not_classes = ("BACKGROUND_Google", "Faces_easy")
    renamed: ClassVar = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}

    def make_split(self, generator: random.Random) -> Split:
        """Labels follow the sorted folder names."""
        folders = class_folders(self.root / self.folder, self.not_classes)
        return cut([(label, self.renamed.get(name, name), files) for label, name, files in folders], generator)


def class_folders(root: Path, left_out: Sequence[str] = ()) -> list[tuple[int, str, list[str]]]:
    """(label, name, images) of each folder, sorted by name."""
    folders = [entry.name for entry in listing.entries(root) if listing.is_folder(entry)]
    found = list(enumerate(in_order(set(folders) - set(left_out))))
    if not found:
        raise DataError(f"{root}: no class folder; unpack the images there")
    return [(label, name, class_images(root, name)) for label, name in found]


def class_images(root: Path, folder: str) -> list[str]:
    """The images in a class folder, relative to `root`."""
    return [f"{folder}/{entry.name}" for entry in listing.entries(root / folder) if listing.is_image_file(entry)]


def _labelled(split: Mapping[str, Sequence[str]]) -> Split:
    """Turn lists of CLASS/IMAGE into items; labels follow the sorted class names of all lists."""
    paths = {name: [with_slashes(file) for file in files] for name, files in split.items()}
    pairs = {name: [(file, file.partition("/")[0]) for file in files] for name, files in paths.items()}
    class_names = in_order({class_name for own in pairs.values() for _, class_name in own})
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    return {name: [Item(file, labels[own], own) for file, own in files] for name, files in pairs.items()}
