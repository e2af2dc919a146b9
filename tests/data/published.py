"""Small archives in the layouts in which the data sets are published, and the URLs at which they are."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from conftest import encoded
from scipy.io import savemat

Files = Mapping[str, bytes]
VGG = "https://www.robots.ox.ac.uk/~vgg/data"
SUN = "vision.princeton.edu/projects/2010/SUN"
EUROSAT = "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd"


class Published(NamedTuple):
    """A data set: files by URL, and what its manifest must contain."""

    files: dict[str, bytes]
    classes: tuple[str, ...]
    splits: tuple[int, int, int]
    """images of train, val and test"""


def tarred(files: Files, mode: str = "w:gz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def zipped(files: Files) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def images(names: Iterable[str]) -> dict[str, bytes]:
    """Images of different colours."""
    return {name: encoded(((37 * number) % 256, number % 256, 9)) for number, name in enumerate(names)}


def lines(*names: str) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def matrix(**values: object) -> bytes:
    data = io.BytesIO()
    savemat(data, values)
    return data.getvalue()


def oxford_pets() -> Published:
    names = ["Abyssinian", "beagle"]
    train = [f"{name}_{number} {label} 1 1" for label, name in enumerate(names, 1) for number in range(10)]
    test = [f"{name}_{number} {label} 1 1" for label, name in enumerate(names, 1) for number in range(10, 13)]
    photos = images(f"images/{line.split()[0]}.jpg" for line in train + test)
    lists = {"annotations/trainval.txt": lines(*train), "annotations/test.txt": lines("#a comment", *test)}
    files = {f"{VGG}/pets/data/images.tar.gz": tarred(photos), f"{VGG}/pets/data/annotations.tar.gz": tarred(lists)}
    return Published(files, ("abyssinian", "beagle"), (16, 4, 6))


def flowers102() -> Published:
    numbers = range(1, 21)
    photos = images(f"jpg/image_{number:05d}.jpg" for number in numbers)
    labels = np.array([[1 + number // 11 for number in numbers]], np.uint8)
    sets = matrix(trnid=np.array([[1, 11]]), valid=np.array([[2, 12]]), tstid=np.array([[3, 13]]))
    at = f"{VGG}/flowers/102"
    archives = {f"{at}/102flowers.tgz": tarred(photos), f"{at}/imagelabels.mat": matrix(labels=labels)}
    return Published({**archives, f"{at}/setid.mat": sets}, ("pink primrose", "hard-leaved pocket orchid"), (10, 4, 6))


def dtd() -> Published:
    parts = {"train": range(3), "val": range(3, 5), "test": range(5, 7)}
    names = {part: [f"{name}/{name}_{n}.jpg" for name in ("banded", "dotted") for n in parts[part]] for part in parts}
    lists = {f"dtd/labels/{part}1.txt": lines(*own) for part, own in names.items()}
    photos = images(f"dtd/images/{name}" for own in names.values() for name in own)
    archive = tarred({**photos, **lists})
    return Published({f"{VGG}/dtd/download/dtd-r1.0.1.tar.gz": archive}, ("banded", "dotted"), (6, 4, 4))


def food101() -> Published:
    names = ("baklava", "sushi")
    parts = {"train": range(10), "test": range(10, 13)}
    listed = {part: {name: [f"{name}/{n}" for n in own] for name in names} for part, own in parts.items()}
    meta = {f"meta/{part}.json": json.dumps(own).encode() for part, own in listed.items()}
    meta |= {f"meta/{part}.txt": lines(*own["baklava"], *own["sushi"]) for part, own in listed.items()}
    photos = images(f"images/{file}.jpg" for own in listed.values() for files in own.values() for file in files)
    archive = tarred({f"food-101/{name}": content for name, content in {**photos, **meta}.items()})
    return Published({"http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz": archive}, names, (16, 4, 6))


def caltech101() -> Published:
    names = ("BACKGROUND_Google", "Faces", "Faces_easy", "ant")
    photos = images(f"101_ObjectCategories/{name}/image_{n:04d}.jpg" for name in names for n in range(10))
    inner = {"caltech-101/101_ObjectCategories.tar.gz": tarred(photos), "caltech-101/Annotations.tar": tarred({}, "w")}
    url = "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip"
    return Published({url: zipped(inner)}, ("face", "ant"), (10, 4, 6))


def fgvc_aircraft() -> Published:
    names, parts = ("A310", "Boeing 707"), {"train": range(4), "val": range(4, 6), "test": range(6, 9)}
    listed = {
        part: [f"{10 * n + k:07d} {name}" for k, name in enumerate(names) for n in own] for part, own in parts.items()
    }
    listed["trainval"] = listed["train"] + listed["val"]
    lists = {f"images_variant_{part}.txt": lines(*own) for part, own in listed.items()} | {
        "variants.txt": lines(*names)
    }
    photos = images(f"images/{line.split()[0]}.jpg" for own in listed.values() for line in own)
    archive = tarred({f"fgvc-aircraft-2013b/data/{name}": content for name, content in {**photos, **lists}.items()})
    return Published({f"{VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz": archive}, names, (8, 4, 6))


def sun397() -> Published:
    places = ("a/abbey", "a/apse/indoor")
    train, test = ([f"/{place}/sun_{n}.jpg" for place in places for n in own] for own in (range(10), range(10, 13)))
    listed = {"ClassName.txt": lines(*(f"/{place}" for place in places))}
    photos = images(f"SUN397{name}" for name in train + test)
    partitions = zipped({**listed, "Training_01.txt": lines(*train), "Testing_01.txt": lines(*test)})
    archive = tarred({**photos, "SUN397/ClassName.txt": listed["ClassName.txt"]})
    files = {f"http://{SUN}/SUN397.tar.gz": archive, f"https://{SUN}/download/Partitions.zip": partitions}
    return Published(files, ("abbey", "indoor apse"), (16, 4, 6))


def eurosat() -> Published:
    known = {
        "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
        "SeaLake": "Sea or Lake",
    }  # fmt: skip
    photos = images(f"2750/{name}/{name}_{n}.jpg" for name in known for n in range(10))
    return Published({f"{EUROSAT}/EuroSAT.zip": zipped(photos)}, tuple(known.values()), (50, 20, 30))


def cifar(
    folder: str,
    batches: Mapping[str, int],
    meta: str,
    key: str,
    kind: str,
    names: tuple[str, ...],
    splits: tuple[int, int, int],
) -> Published:
    files = {f"{folder}/{meta}": pickle.dumps({f"{kind}_names": list(names)}, 2)}
    for file, count in batches.items():
        pixels = np.arange(count * 3072, dtype=np.uint8).reshape(count, 3072)
        files[f"{folder}/{file}"] = pickle.dumps({"data": pixels, key: [n % len(names) for n in range(count)]}, 2)
    url = f"https://www.cs.toronto.edu/~kriz/{folder.removesuffix('-batches-py').removesuffix('-python')}-python.tar.gz"
    return Published({url: tarred(files)}, names, splits)


def cifar10() -> Published:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    batches = {**{f"data_batch_{n}": 4 for n in range(1, 6)}, "test_batch": 10}
    return cifar("cifar-10-batches-py", batches, "batches.meta", "labels", "label", names, (20, 0, 10))


def cifar100() -> Published:
    names = tuple(f"thing {n:02d}" for n in range(100))
    return cifar(
        "cifar-100-python", {"train": 100, "test": 100}, "meta", "fine_labels", "fine_label", names, (100, 0, 100)
    )


DATA_SETS = (
    oxford_pets, flowers102, dtd, food101, caltech101, fgvc_aircraft, sun397, eurosat, cifar10, cifar100,
)  # fmt: skip
