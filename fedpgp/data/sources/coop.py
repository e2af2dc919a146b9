"""The few-shot data sets of CoOp, with its split files or, without these, splits made as CoOp makes them."""

import io
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
from fedpgp.data.sources import listing, splits
from fedpgp.data.sources.base import SINGLE_DOMAIN, Scan, own_folder
from fedpgp.data.sources.folder import ImageFiles
from fedpgp.data.sources.listing import FOLDERS, check_name
from fedpgp.data.sources.lists import listed, read_lines, with_slashes
from fedpgp.data.sources.splits import SPLITS, Item, Split, cut, hold_back, read_json

_OWN_SPLIT = "optionally {}, linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md, for CoOp's split"


class CoOpSource(ImageFiles):
    """A data set with `split_zhou_TITLE.json` or, without it, its official annotations.

    A new split is saved beside the images in CoOp's format as `split_seedN_TITLE.json` (N is `data.split_seed`) and
    read from there the next time. Nothing is written to a read-only folder.
    """

    title: ClassVar[str]
    images: ClassVar[str]  # folder of the images
    torchvision: ClassVar[str]  # the class of `torchvision.datasets` that downloads it
    has_ids: ClassVar[bool] = False  # the official annotations number the classes
    not_classes: ClassVar[tuple[str, ...]] = ()  # folders that CoOp leaves out

    def __init__(self, settings: DataSettings) -> None:
        super().__init__(settings)
        self.root = own_folder(self.root, type(self), self.images)
        self.seed = settings.split_seed

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the data set with torchvision."""
        from torchvision import datasets

        getattr(datasets, cls.torchvision)(root, download=True)

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
        table, left_out = listed(self.root, images, source, self.images)
        if made:
            splits.save(path, split)
        known = sum((self.root / self.images / name).is_dir() for name in self.not_classes)
        return Scan(names, (SINGLE_DOMAIN,), table, numbered, left_out - Counter({FOLDERS: known}), self.root)

    def make_split(self, generator: random.Random) -> Split:
        """Make the split from the official annotations."""
        raise NotImplementedError


class OxfordPets(CoOpSource):
    """annotations/trainval.txt and test.txt; ids from 1; a fifth of trainval becomes validation."""

    name, template = "oxford_pets", "a photo of a {}, a type of pet."
    title, images = "OxfordPets", "images"
    folders = ("oxford_pets", "oxford-iiit-pet")
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz -> ROOT/images/*.jpg",
        "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz -> ROOT/annotations/*.txt",
        _OWN_SPLIT.format("split_zhou_OxfordPets.json"),
    )
    torchvision = "OxfordIIITPet"
    has_ids = True

    def make_split(self, generator: random.Random) -> Split:
        """Breeds are the file names without their number, in lower case."""
        train, val = hold_back(self._annotated("trainval.txt"), generator)
        return {"train": train, "val": val, "test": self._annotated("test.txt")}

    def _annotated(self, file: str) -> list[Item]:
        path = self.root / "annotations" / file
        for part in (path.parent, path):
            check_name(part)
        items = []
        for line in read_lines(path):
            try:
                image, label, _, _ = line.rsplit(maxsplit=3)
                items.append(Item(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower()))
            except ValueError:
                raise DataError(f"{path}: {line!r} is not IMAGE CLASS SPECIES BREED; fetch the file again") from None
        return items


class Flowers102(CoOpSource):
    """imagelabels.mat (ids from 1, one per image number) and cat_to_name.json (id -> name)."""

    name, template = "flowers102", "a photo of a {}, a type of flower."
    title, images = "OxfordFlowers", "jpg"
    folders = ("oxford_flowers", "flowers-102", "flowers102")
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz -> ROOT/jpg/*.jpg",
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat -> ROOT/imagelabels.mat",
        "cat_to_name.json (class id -> name), linked from CoOp's DATASETS.md -> ROOT/cat_to_name.json",
        _OWN_SPLIT.format("split_zhou_OxfordFlowers.json"),
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
        from scipy.io import loadmat

        path = self.root / "imagelabels.mat"
        try:
            content = io.BytesIO(path.read_bytes())
        except OSError as error:
            what = f"{path}: cannot be read ({error.strerror})"
            raise DataError(f"{what}; see `fedpgp data prepare flowers102`") from error
        try:
            labels = loadmat(content, variable_names=["labels"])["labels"].ravel().tolist()
        except Exception as error:  # scipy's reader raises anything
            raise DataError(f"{path}: not a MATLAB file with `labels` ({error}); fetch it again") from error
        wrong = [str(label) for label in labels if label != int(label) or label < 1]
        if wrong:
            raise DataError(f"{path}: class ids count from 1; found {first_of(wrong)}; fetch it again")
        return [int(label) for label in labels]


class DescribableTextures(CoOpSource):
    """The official split labels/train1.txt, val1.txt, test1.txt; without these, images/CLASS cut as CoOp does."""

    name, template = "dtd", "{} texture."
    title, images = "DescribableTextures", "images"
    folders = ("dtd", "dtd/dtd")
    torchvision = "DTD"
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz -> ROOT/images, ROOT/labels",
        _OWN_SPLIT.format("split_zhou_DescribableTextures.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """Classes are the folders, sorted."""
        check_name(self.root / "labels")
        if not (self.root / "labels").is_dir():
            return cut(_class_folders(self.root / self.images), generator)
        return _labelled({name: read_lines(self.root / "labels" / f"{name}1.txt") for name in SPLITS})


class Food101(CoOpSource):
    """The official meta/train.txt and test.txt (or .json), a fifth of train for validation; else cut as CoOp does."""

    name, template = "food101", "a photo of {}, a type of food."
    title, images = "Food101", "images"
    folders = ("food-101", "food101")
    torchvision = "Food101"
    steps = (
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz -> ROOT/images/CLASS, ROOT/meta/*.txt",
        _OWN_SPLIT.format("split_zhou_Food101.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """Classes are the folders, sorted."""
        check_name(self.root / "meta")
        if not (self.root / "meta").is_dir():
            return cut(_class_folders(self.root / self.images), generator)
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


class Caltech101(CoOpSource):
    """101_ObjectCategories/CLASS without the two folders that CoOp leaves out; four classes are renamed as there."""

    name = "caltech101"
    title, images = "Caltech101", "101_ObjectCategories"
    folders = ("caltech-101", "caltech101")
    torchvision = "Caltech101"
    steps = (
        "https://data.caltech.edu/records/mzrjq-6wc02 (101_ObjectCategories.tar.gz) -> ROOT/101_ObjectCategories",
        _OWN_SPLIT.format("split_zhou_Caltech101.json"),
    )
    not_classes = ("BACKGROUND_Google", "Faces_easy")
    renamed: ClassVar = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}

    def make_split(self, generator: random.Random) -> Split:
        """Labels follow the sorted folder names."""
        folders = _class_folders(self.root / self.images, self.not_classes)
        return cut([(label, self.renamed.get(name, name), files) for label, name, files in folders], generator)


def _class_folders(root: Path, left_out: Sequence[str] = ()) -> list[tuple[int, str, list[str]]]:
    """(label, name, images) of each folder, sorted by name."""
    folders = [entry.name for entry in listing.entries(root) if listing.is_folder(entry)]
    found = []
    for label, name in enumerate(in_order(set(folders) - set(left_out))):
        images = [entry.name for entry in listing.entries(root / name) if listing.is_image_file(entry)]
        found.append((label, name, [f"{name}/{image}" for image in images]))
    if not found:
        raise DataError(f"{root}: no class folder; unpack the images there")
    return found


def _labelled(split: Mapping[str, Sequence[str]]) -> Split:
    """Turn lists of CLASS/IMAGE into items; labels follow the sorted class names of all lists."""
    paths = {name: [with_slashes(file) for file in files] for name, files in split.items()}
    pairs = {name: [(file, file.partition("/")[0]) for file in files] for name, files in paths.items()}
    class_names = in_order({class_name for own in pairs.values() for _, class_name in own})
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    return {name: [Item(file, labels[own], own) for file, own in files] for name, files in pairs.items()}
