"""The other data sets of CoOp with a split: cars, aircraft, scenes, actions, satellite images."""

import gzip
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from fedpgp.core.errors import DataError
from fedpgp.core.text import MIB, first_of
from fedpgp.data.sources import matlab
from fedpgp.data.sources.coop import OWN_SPLIT, CoOpSource, TorchvisionSource, class_folders, class_images
from fedpgp.data.sources.lists import with_slashes
from fedpgp.data.sources.splits import SPLITS, Item, Split, cut, hold_back

_PARTITIONS = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"


class StanfordCars(CoOpSource):
    """cars_train and cars_test with devkit/*.mat, or car_ims with cars_annos.mat; ids from 1.

    A fifth of the official training images becomes validation. CoOp moves the year in a name to its front.
    """

    name = "stanford_cars"
    title, images = "StanfordCars", ""
    layouts = (("cars_train", "cars_test"), ("car_ims",))
    folders = ("stanford_cars", "stanford-cars")
    has_ids = True
    steps = (
        "cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat (Stanford's page, "
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, is gone) -> ROOT/cars_train, cars_test, devkit, "
        "cars_test_annos_withlabels.mat",
        "or car_ims.tgz and cars_annos.mat of the same data set -> ROOT/car_ims, cars_annos.mat",
        OWN_SPLIT.format("split_zhou_StanfordCars.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """Classes in the order of the annotations."""
        if (self.root / "car_ims").is_dir():
            items = self._annotated("cars_annos.mat", "cars_annos.mat", "relative_im_path", "")
            tests = matlab.read(self.root / "cars_annos.mat", "annotations", self.name)["test"].tolist()
            official = [item for item, test in zip(items, tests, strict=True) if not test]
            test = [item for item, test in zip(items, tests, strict=True) if test]
        else:
            meta = "devkit/cars_meta.mat"
            official = self._annotated("devkit/cars_train_annos.mat", meta, "fname", "cars_train/")
            test = self._annotated("cars_test_annos_withlabels.mat", meta, "fname", "cars_test/")
        train, val = hold_back(official, generator)
        return {"train": train, "val": val, "test": test}

    def _annotated(self, file: str, meta: str, column: str, folder: str) -> list[Item]:
        names = [_year_first(str(name.item())) for name in self._read(meta, "class_names")]
        path, annotations = self.root / file, self._read(file, "annotations")
        missing = [name for name in (column, "class") if name not in (annotations.dtype.names or ())]
        if missing:
            raise DataError(f"{path}: `annotations` without {', '.join(missing)}; fetch the file with labels")
        rows = [(str(row[column].item()), int(row["class"].item())) for row in annotations]
        if unknown := [f"{image}: {label}" for image, label in rows if not 1 <= label <= len(names)]:
            raise DataError(f"{path}: class ids are 1 to {len(names)}; found {first_of(unknown)}; fetch it again")
        return [Item(f"{folder}{image}", label - 1, names[label - 1]) for image, label in rows]

    def _read(self, file: str, variable: str) -> matlab.Array:
        return matlab.read(self.root / file, variable, self.name)


class FGVCAircraft(TorchvisionSource):
    """The official split by variant: images_variant_train.txt, _val.txt, _test.txt; classes as in variants.txt."""

    name, template = "fgvc_aircraft", "a photo of a {}, a type of aircraft."
    title, images = "FGVCAircraft", "images"
    folders = ("fgvc_aircraft", "fgvc-aircraft-2013b/data", "data")
    torchvision = "FGVCAircraft"
    has_ids = True
    steps = (
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz, its folder data -> "
        "ROOT/images, ROOT/variants.txt, ROOT/images_variant_*.txt",
    )

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the data set with torchvision, which knows no checksum of it, and check that of gzip."""
        super().download(root)
        with gzip.open(root / "fgvc-aircraft-2013b.tar.gz") as archive:
            while archive.read(MIB):  # unpacking does not read the end
                pass

    def make_split(self, generator: random.Random) -> Split:
        """A line of a list is IMAGE VARIANT."""
        variants = self.lines("variants.txt")
        split = {}
        for name in SPLITS:
            file = f"images_variant_{name}.txt"
            pairs = [line.partition(" ") for line in self.lines(file)]
            split[name] = _labelled([(f"{image}.jpg", own) for image, _, own in pairs], variants, self.root / file)
        return split


class SUN397(TorchvisionSource):
    """The official first partition, Training_01.txt and Testing_01.txt; without it, classes are cut as CoOp cuts.

    Classes are those of ClassName.txt, such as /a/apse/indoor, which CoOp calls `indoor apse`. A fifth of the training
    images becomes validation.
    """

    name = "sun397"
    title, images = "SUN397", "SUN397"
    folders = ("sun397",)
    torchvision = "SUN397"
    has_ids = True
    steps = (
        "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz -> ROOT/SUN397/a, ..., ROOT/SUN397/z",
        f"{_PARTITIONS} -> ROOT/ClassName.txt, ROOT/Training_01.txt, ROOT/Testing_01.txt",
        OWN_SPLIT.format("split_zhou_SUN397.json"),
    )

    @classmethod
    def download(cls, root: Path) -> None:
        """Fetch the images with torchvision, and the official partitions."""
        from torchvision.datasets.utils import download_and_extract_archive

        super().download(root / "sun397")
        download_and_extract_archive(_PARTITIONS, str(root / "sun397"))

    def make_split(self, generator: random.Random) -> Split:
        """Images are listed as /a/apse/indoor/sun_0123.jpg."""
        classes = [line.strip("/") for line in self._listed("ClassName.txt")]
        if not any(self._found(file) for file in ("Training_01.txt", "Testing_01.txt")):
            folders = [(name, class_images(self.root / self.folder, name)) for name in classes]
            return cut([(label, _reversed(name), files) for label, (name, files) in enumerate(folders)], generator)
        official = []
        for file in ("Training_01.txt", "Testing_01.txt"):
            images = [with_slashes(line).lstrip("/") for line in self._listed(file)]
            pairs = [(image, image.rpartition("/")[0]) for image in images]
            official.append(_labelled(pairs, classes, self.root / file, _reversed))
        train, val = hold_back(official[0], generator)
        return {"train": train, "val": val, "test": official[1]}

    def _found(self, file: str) -> list[str]:
        """The folders below the root that have a list: torchvision's archive has ClassName.txt beside the images."""
        return [folder for folder in ("", "Partitions", self.folder) if (self.root / folder / file).is_file()]

    def _listed(self, file: str) -> list[str]:
        return self.lines(*filter(None, (*self._found(file)[:1], file)))


class UCF101(CoOpSource):
    """The middle frame of each video; the first official split, of which a fifth of the training videos is validation.

    CoOp cuts the names of classes into words: ApplyEyeMakeup is Apply_Eye_Makeup, also as a folder.
    """

    name, template = "ucf101", "a photo of a person doing {}."
    title, images = "UCF101", "UCF-101-midframes"
    folders = ("ucf101",)
    has_ids = True
    steps = (
        "UCF-101-midframes.zip, linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md -> "
        "ROOT/UCF-101-midframes/CLASS/*.jpg",
        "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip -> ROOT/ucfTrainTestlist/*.txt",
        OWN_SPLIT.format("split_zhou_UCF101.json"),
    )

    def make_split(self, generator: random.Random) -> Split:
        """A line of a list is CLASS/VIDEO.avi, for training followed by the number of the class, from 1."""
        classes = []
        for number, line in enumerate(self.lines("ucfTrainTestlist", "classInd.txt"), start=1):
            label, _, name = line.partition(" ")
            if label != str(number):
                path = self.root / "ucfTrainTestlist/classInd.txt"
                raise DataError(f"{path}: {line!r} is not {number} CLASS; fetch the file again")
            classes.append(name)
        official = []
        for file in ("trainlist01.txt", "testlist01.txt"):
            videos = [with_slashes(line).split(" ")[0].partition("/") for line in self.lines("ucfTrainTestlist", file)]
            pairs = [(f"{_words(name)}/{video.removesuffix('.avi')}.jpg", name) for name, _, video in videos]
            official.append(_labelled(pairs, classes, self.root / "ucfTrainTestlist" / file, _words))
        train, val = hold_back(official[0], generator)
        return {"train": train, "val": val, "test": official[1]}


class EuroSAT(TorchvisionSource):
    """Ten class folders, cut as CoOp cuts and named as CoOp names them."""

    name, template = "eurosat", "a centered satellite photo of {}."
    title, images = "EuroSAT", "2750"
    layouts = (("2750",), ("EuroSAT_RGB",))
    folders = ("eurosat",)
    torchvision = "EuroSAT"
    steps = (
        "https://zenodo.org/records/7711810 (EuroSAT_RGB.zip) -> ROOT/EuroSAT_RGB/CLASS, or the older EuroSAT.zip -> "
        "ROOT/2750/CLASS",
        OWN_SPLIT.format("split_zhou_EuroSAT.json"),
    )
    renamed: ClassVar[Mapping[str, str]] = {
        "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
        "SeaLake": "Sea or Lake",
    }  # fmt: skip

    def make_split(self, generator: random.Random) -> Split:
        """Labels follow the sorted folder names."""
        root = self.root / self.folder
        folders = class_folders(root)
        if wrong := sorted({name for _, name, _ in folders} ^ self.renamed.keys()):
            raise DataError(f"{root}: class folders missing or unknown: {first_of(wrong)}; unpack {self.name} again")
        return cut([(label, self.renamed[name], files) for label, name, files in folders], generator)


def _labelled(
    pairs: Sequence[tuple[str, str]], classes: Sequence[str], path: Path, shown: Callable[[str], str] = str
) -> list[Item]:
    """Label listed images (file, class) by the order of the classes, and name them."""
    labels = {name: label for label, name in enumerate(classes)}
    if unknown := sorted({repr(name) for _, name in pairs if name not in labels}):
        raise DataError(f"{path}: {first_of(unknown)} is not a class of the data set's list; fetch both lists again")
    return [Item(image, labels[name], shown(name)) for image, name in pairs]


def _year_first(name: str) -> str:
    """AM General Hummer SUV 2000 -> 2000 AM General Hummer SUV."""
    *others, year = name.split(" ")
    return " ".join([year, *others])


def _reversed(name: str) -> str:
    """a/apse/indoor -> indoor apse."""
    return " ".join(reversed(name.split("/")[1:]))


def _words(name: str) -> str:
    """ApplyEyeMakeup -> Apply_Eye_Makeup."""
    return "_".join(re.findall("[A-Z][^A-Z]*", name))
