"""Where the data sets come from, what their folders are called, and how a person gets them without us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpgp.core.errors import DataError

_COOP = "optionally {}, linked from https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md, for CoOp's own split"


@dataclass(frozen=True)
class Origin:
    """One data set: the names its folder goes by, and the steps to get it."""

    folders: tuple[str, ...]
    steps: tuple[str, ...]


ORIGINS: Mapping[str, Origin] = {
    "oxford_pets": Origin(
        ("oxford_pets", "oxford-iiit-pet"),
        (
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz -> ROOT/images/*.jpg",
            "https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz -> ROOT/annotations/*.txt",
            _COOP.format("split_zhou_OxfordPets.json"),
        ),
    ),
    "flowers102": Origin(
        ("oxford_flowers", "flowers-102", "flowers102"),
        (
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz -> ROOT/jpg/*.jpg",
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat -> ROOT/imagelabels.mat",
            "cat_to_name.json (class id -> name), linked from CoOp's DATASETS.md -> ROOT/cat_to_name.json",
            _COOP.format("split_zhou_OxfordFlowers.json"),
        ),
    ),
    "dtd": Origin(
        ("dtd", "dtd/dtd"),
        (
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz -> ROOT/images, ROOT/labels",
            _COOP.format("split_zhou_DescribableTextures.json"),
        ),
    ),
    "caltech101": Origin(
        ("caltech-101", "caltech101"),
        (
            "https://data.caltech.edu/records/mzrjq-6wc02 (101_ObjectCategories.tar.gz) -> ROOT/101_ObjectCategories",
            _COOP.format("split_zhou_Caltech101.json"),
        ),
    ),
    "food101": Origin(
        ("food-101", "food101"),
        (
            "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz -> ROOT/images/CLASS, ROOT/meta/*.txt",
            _COOP.format("split_zhou_Food101.json"),
        ),
    ),
    "cifar10": Origin(
        ("cifar-10-batches-py",),
        (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz -> ROOT/cifar-10-batches-py",
            "or https://huggingface.co/datasets/uoft-cs/cifar10 (parquet) -> ROOT/*.parquet",
        ),
    ),
    "cifar100": Origin(
        ("cifar-100-python",),
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz -> ROOT/cifar-100-python",
            "or https://huggingface.co/datasets/uoft-cs/cifar100 (parquet) -> ROOT/*.parquet",
        ),
    ),
    "office_caltech10": Origin(
        ("office_caltech_10", "office_caltech10"),
        (
            "office_caltech_10.zip, linked from https://github.com/med-air/FedBN -> ROOT/amazon, caltech, dslr, webcam",
            "optionally FedBN's lists beside them: ROOT/DOMAIN_train.pkl and ROOT/DOMAIN_test.pkl",
        ),
    ),
    "domainnet": Origin(
        ("domainnet", "DomainNet"),
        (
            "http://ai.bu.edu/M3SDA/ (the cleaned version, six zip files) -> ROOT/clipart, ..., ROOT/sketch",
            "from the same page DOMAIN_train.txt and DOMAIN_test.txt -> ROOT",
        ),
    ),
    "domainnet10": Origin(
        ("domainnet", "DomainNet"),
        (
            "DomainNet.zip, linked from https://github.com/med-air/FedBN -> ROOT/clipart, ..., ROOT/DOMAIN_train.pkl",
            "or all of DomainNet, http://ai.bu.edu/M3SDA/, with DOMAIN_train.txt and DOMAIN_test.txt -> ROOT",
        ),
    ),
}


def own_folder(root: Path, name: str, *needed: str) -> Path:
    """The data set's own folder: `root`, or the one under it that is called like the data set.

    Raises:
        DataError: none of them has the folders `needed`; says what is missing and where it comes from.
    """
    candidates = [root, *(root / folder for folder in ORIGINS[name].folders)]
    for folder in candidates:
        if all((folder / part).is_dir() for part in needed):
            return folder
    at = next((folder for folder in candidates[1:] if folder.is_dir()), root)
    missing = ", ".join(part for part in needed if not (at / part).is_dir())
    raise DataError(f"{at}: {name} needs the folder {missing} here; get it: {'; '.join(ORIGINS[name].steps)}")
