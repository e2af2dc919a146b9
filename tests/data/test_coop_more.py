"""Cars, aircraft, scenes, actions and satellite images in their published layouts, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from built import build
from scipy.io import savemat

from fedpgp import config
from fedpgp.core.errors import DataError
from fedpgp.data import sources
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources.splits import SPLITS

Write = Callable[..., Path]


def held(built: Manifest) -> dict[str, Counter[str]]:
    """Per split, images by class name."""
    names = [built.class_names[label] for label in built.labels]
    return {split: Counter(n for n, s in zip(names, built.splits, strict=True) if s == split) for split in SPLITS}


def files_of(built: Manifest, class_name: str, split: str) -> list[str]:
    """The names of files, without folders."""
    chosen = (built.labels == built.class_names.index(class_name)) & (built.splits == split)
    return [file.rpartition("/")[2] for file in built.table.filter(chosen)["file"].to_pylist()]


@pytest.fixture
def write(tmp_path: Path, png: Callable[..., bytes]) -> Write:
    """Write images that differ, and lists of lines, below a folder of the given name."""

    def files(root: str, images: list[str], lists: Mapping[str, list[str]] | None = None) -> Path:
        for number, image in enumerate(images):
            path = tmp_path / root / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png((number % 256, number // 256, 7)))
        for name, lines in (lists or {}).items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines))
        return tmp_path / root

    return files


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012")
SHOWN_CARS = ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan")


def annotations(rows: list[tuple[object, ...]], *columns: str) -> np.ndarray:
    """A struct array as MATLAB writes it: every field is a matrix."""
    table = np.empty((1, len(rows)), dtype=[(name, object) for name in columns])
    for number, row in enumerate(rows):
        table[0, number] = tuple(np.array([[value]]) if isinstance(value, int) else value for value in row)
    return table


@pytest.fixture
def cars(write: Write) -> Path:
    """The archives of Stanford: 5 training and 3 test images per class, boxes before the class."""
    own = {"train": [(f"{n:05d}.jpg", 1 + n % 3) for n in range(1, 16)]}
    own["test"] = [(f"{n:05d}.jpg", 1 + n % 3) for n in range(1, 10)]
    root = write("stanford_cars", [f"cars_{split}/{image}" for split, rows in own.items() for image, _ in rows])
    (root / "devkit").mkdir()
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([CARS], object)})
    box = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 2, 3, 4, label, image) for image, label in own[split]]
        savemat(root / file, {"annotations": annotations(rows, *box, "class", "fname")})
    without = annotations([(1, 2, 3, 4, image) for image, _ in own["test"]], *box, "fname")
    savemat(root / "devkit/cars_test_annos.mat", {"annotations": without})
    return root


@pytest.fixture
def old_cars(write: Write) -> Path:
    """The older archive: one folder, and one file of annotations with the split."""
    rows = [(f"car_ims/{n:06d}.jpg", 1, 2, 3, 4, 1 + n % 3, int(n > 15)) for n in range(1, 25)]
    root = write("stanford_cars", [str(row[0]) for row in rows])
    columns = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    classes = np.array([CARS], object)
    savemat(root / "cars_annos.mat", {"annotations": annotations(rows, *columns), "class_names": classes})
    return root


@pytest.mark.parametrize("layout", ["cars", "old_cars"])
def test_cars_have_the_year_in_front(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    built = build("stanford_cars", root)
    assert built.class_names == SHOWN_CARS
    assert held(built) == {
        split: dict.fromkeys(SHOWN_CARS, count) for split, count in (("train", 4), ("val", 1), ("test", 3))
    }
    first = {"cars": ["00003.jpg", "00006.jpg", "00009.jpg"], "old_cars": ["000018.jpg", "000021.jpg", "000024.jpg"]}
    assert files_of(built, SHOWN_CARS[0], "test") == first[layout]
    assert build("stanford_cars", root.parent).digest == built.digest


def test_cars_follow_the_split_of_coop(cars: Path) -> None:
    split = {
        "train": [["cars_train/00001.jpg", 0, SHOWN_CARS[1]]],
        "val": [["cars_train/00002.jpg", 1, SHOWN_CARS[2]]],
        "test": [["cars_test/00001.jpg", 0, SHOWN_CARS[1]]],
    }
    (cars / "split_zhou_StanfordCars.json").write_text(json.dumps(split))
    built = build("stanford_cars", cars)
    assert built.class_names == SHOWN_CARS[1:]
    assert built.table["file"].to_pylist() == ["cars_test/00001.jpg", "cars_train/00001.jpg", "cars_train/00002.jpg"]


def test_refusals_of_cars(cars: Path) -> None:
    (cars / "cars_test_annos_withlabels.mat").write_bytes((cars / "devkit/cars_test_annos.mat").read_bytes())
    with pytest.raises(DataError, match=r"withlabels.mat: `annotations` without class; fetch the file with labels"):
        build("stanford_cars", cars)
    wrong = annotations([("00001.jpg", 1), ("00002.jpg", 4)], "fname", "class")
    savemat(cars / "cars_test_annos_withlabels.mat", {"annotations": wrong})
    with pytest.raises(DataError, match=r"withlabels.mat: class ids are 1 to 3; found 00002.jpg: 4; fetch it again"):
        build("stanford_cars", cars)
    gone = annotations([("00001.jpg", 1), ("99999.jpg", 2)], "fname", "class")
    savemat(cars / "cars_test_annos_withlabels.mat", {"annotations": gone})
    with pytest.raises(DataError, match=r"official lists of stanford_cars: 1 images are not in .*cars_test/99999.jpg"):
        build("stanford_cars", cars)
    (cars / "devkit/cars_meta.mat").unlink()
    with pytest.raises(DataError, match=r"cars_meta.mat: cannot be read .*see `fedpgp data prepare stanford_cars`"):
        build("stanford_cars", cars)
    (cars / "cars_test").rename(cars / "elsewhere")
    with pytest.raises(DataError, match=r"stanford_cars needs the folder cars_test here; get it: cars_train.tgz"):
        build("stanford_cars", cars)


VARIANTS = ("707-320", "727-200", "F/A-18", "Challenger 600")
"""Two names with a slash or a blank."""


@pytest.fixture
def aircraft(write: Write) -> Path:
    """The archive as it unpacks: numbers of seven digits, lists by variant, family and manufacturer."""
    images = {f"{1025794 + 11 * n:07d}": VARIANTS[n % 4] for n in range(24)}
    parts = {"train": slice(0, 8), "val": slice(8, 16), "test": slice(16, 24)}
    lines = [f"{image} {variant}" for image, variant in images.items()]
    lists = {f"data/images_variant_{split}.txt": lines[part] for split, part in parts.items()}
    others = {"data/images_family_train.txt": ["1025794 Boeing 707"], "data/images_box.txt": ["1025794 3 144 998 431"]}
    lists = {**lists, **others, "data/images_variant_trainval.txt": lines[:16], "data/variants.txt": list(VARIANTS)}
    return write("fgvc-aircraft-2013b", [f"data/images/{image}.jpg" for image in images], lists)


def test_aircraft_have_their_official_split_and_order(aircraft: Path) -> None:
    built = build("fgvc_aircraft", aircraft)
    assert built.class_names == VARIANTS
    assert held(built) == {split: dict.fromkeys(VARIANTS, 2) for split in SPLITS}
    assert files_of(built, "F/A-18", "train") == ["1025816.jpg", "1025860.jpg"]
    assert build("fgvc_aircraft", aircraft.parent).digest == built.digest
    coop = (aircraft / "data").rename(aircraft.parent / "fgvc_aircraft")
    assert build("fgvc_aircraft", coop).digest == build("fgvc_aircraft", coop.parent).digest == built.digest


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("images_variant_val.txt", "1025794 A380\n", r"images_variant_val.txt: 'A380' is not a class of the data set"),
        ("images_variant_val.txt", "1025794\n", r"images_variant_val.txt: '' is not a class of the data set's list"),
        ("images_variant_val.txt", "0000001 F/A-18\n", r"1 images are not in data.root: images/0000001.jpg"),
        ("images_variant_val.txt", "1025794 F/A-18\n", r"1 images are listed twice: images/1025794.jpg"),
        ("images_variant_val.txt", None, r"images_variant_val.txt: cannot be read \(No such .*; see `fedpgp data pre"),
        ("variants.txt", None, r"variants.txt: cannot be read \(No such file"),
        ("variants.txt", "A380\n707-320\n727-200\nF/A-18\nChallenger 600\n", r"without gaps; wrong or missing: 0"),
    ],
)
def test_refusals_of_aircraft(file: str, text: str | None, message: str, aircraft: Path) -> None:
    path = aircraft / "data" / file
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        build("fgvc_aircraft", aircraft)


SCENES = ("a/abbey", "a/airplane_cabin", "a/apse/indoor", "c/church/indoor", "c/church/outdoor")
SHOWN_SCENES = ("abbey", "airplane_cabin", "indoor apse", "indoor church", "outdoor church")


@pytest.fixture
def scenes(write: Write) -> Path:
    """The images with ClassName.txt beside them, and the partitions: 5 + 5 of 12 images per class are in the first."""
    images = {name: [f"/{name}/sun_{letter}qzsx.jpg" for letter in "abcdefghijkl"] for name in SCENES}
    parts = {
        f"{kind}_{number:02d}.txt": [image for own in images.values() for image in own[start : start + 5]]
        for number in (1, 2)
        for kind, start in (("Training", number - 1), ("Testing", 4 + number))
    }
    lists = {**parts, "ClassName.txt": [f"/{name}" for name in SCENES]}
    lists["SUN397/ClassName.txt"] = lists["ClassName.txt"]
    return write("sun397", [f"SUN397{image}" for own in images.values() for image in own], lists)


def test_scenes_follow_the_first_partition(scenes: Path) -> None:
    built = build("sun397", scenes)
    assert built.class_names == SHOWN_SCENES
    assert held(built) == {
        split: dict.fromkeys(SHOWN_SCENES, count) for split, count in (("train", 4), ("val", 1), ("test", 5))
    }
    assert files_of(built, "indoor apse", "test") == [f"sun_{letter}qzsx.jpg" for letter in "fghij"]
    assert "SUN397/a/apse/indoor/sun_aqzsx.jpg" in built.table["file"].to_pylist()
    for list_file in scenes.glob("*.txt"):
        (scenes / "Partitions").mkdir(exist_ok=True)
        list_file.rename(scenes / "Partitions" / list_file.name)
    (scenes / "split_seed1_SUN397.json").unlink()
    assert build("sun397", scenes.parent).digest == built.digest


def test_scenes_of_torchvision_are_cut(scenes: Path) -> None:
    """Its archive has no partition: half of 12 images, rounded fifth, rest."""
    for list_file in scenes.glob("*.txt"):
        list_file.unlink()
    built = build("sun397", scenes)
    assert built.class_names == SHOWN_SCENES
    assert held(built) == {
        split: dict.fromkeys(SHOWN_SCENES, count) for split, count in (("train", 6), ("val", 2), ("test", 4))
    }


def test_refusals_of_scenes(scenes: Path) -> None:
    (scenes / "Testing_01.txt").rename(scenes / "testing_01.txt")
    with pytest.raises(DataError, match=r"testing_01.txt: rename it to Testing_01.txt, the name that is expected"):
        build("sun397", scenes)
    (scenes / "testing_01.txt").unlink()
    with pytest.raises(DataError, match=r"Testing_01.txt: cannot be read \(No such file"):
        build("sun397", scenes)
    (scenes / "Testing_01.txt").write_text("/z/zoo/sun_a.jpg\n")
    with pytest.raises(DataError, match=r"Testing_01.txt: 'z/zoo' is not a class of the data set's list"):
        build("sun397", scenes)
    for list_file in scenes.rglob("ClassName.txt"):
        list_file.unlink()
    with pytest.raises(DataError, match=r"ClassName.txt: cannot be read \(No such file"):
        build("sun397", scenes)


ACTIONS = ("ApplyEyeMakeup", "HandstandPushups", "TaiChi", "YoYo")
SHOWN_ACTIONS = ("Apply_Eye_Makeup", "Handstand_Pushups", "Tai_Chi", "Yo_Yo")


@pytest.fixture
def actions(write: Write) -> Path:
    """CoOp's middle frames and the official lists. A video of handstands has another spelling than its class."""
    spelled = {name: name.replace("Handstand", "HandStand") for name in ACTIONS}
    videos = {name: [f"{name}/v_{spelled[name]}_g{g:02d}_c01.avi" for g in range(1, 9)] for name in ACTIONS}
    lists = {
        "classInd.txt": [f"{number} {name}" for number, name in enumerate(ACTIONS, start=1)],
        "trainlist01.txt": [f"{v} {n}" for n, own in enumerate(videos.values(), start=1) for v in own[3:]],
        "testlist01.txt": [video for own in videos.values() for video in own[:3]],
    }
    shown = dict(zip(ACTIONS, SHOWN_ACTIONS, strict=True))
    frames = [
        v.replace(f"{name}/", f"{shown[name]}/").replace(".avi", ".jpg") for name in ACTIONS for v in videos[name]
    ]
    return write(
        "ucf101",
        [f"UCF-101-midframes/{frame}" for frame in frames],
        {f"ucfTrainTestlist/{name}": lines for name, lines in lists.items()},
    )


def test_actions_are_words(actions: Path) -> None:
    built = build("ucf101", actions)
    assert built.class_names == SHOWN_ACTIONS
    assert held(built) == {
        split: dict.fromkeys(SHOWN_ACTIONS, count) for split, count in (("train", 4), ("val", 1), ("test", 3))
    }
    assert files_of(built, "Handstand_Pushups", "test") == [f"v_HandStandPushups_g0{n}_c01.jpg" for n in (1, 2, 3)]


def test_refusals_of_actions(actions: Path) -> None:
    lists = actions / "ucfTrainTestlist"
    (lists / "testlist01.txt").write_text("Yoga/v_Yoga_g01_c01.avi\n")
    with pytest.raises(DataError, match=r"testlist01.txt: 'Yoga' is not a class of the data set's list"):
        build("ucf101", actions)
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n3 TaiChi\n")
    with pytest.raises(DataError, match=r"classInd.txt: '3 TaiChi' is not 2 CLASS; fetch the file again"):
        build("ucf101", actions)
    lists.rename(actions / "lists")
    with pytest.raises(DataError, match=r"ucfTrainTestlist/classInd.txt: cannot be read \(No such file"):
        build("ucf101", actions)
    (actions / "UCF-101-midframes").rename(actions / "UCF-101")
    with pytest.raises(DataError, match=r"ucf101 needs the folder UCF-101-midframes here; get it: UCF-101-midframes"):
        build("ucf101", actions)


LAND = {
    "AnnualCrop": "Annual Crop Land", "Forest": "Forest", "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road", "Industrial": "Industrial Buildings", "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land", "Residential": "Residential Buildings", "River": "River",
    "SeaLake": "Sea or Lake",
}  # fmt: skip


@pytest.fixture
def land(write: Write) -> Path:
    """EuroSAT.zip as it unpacks, 10 images per class."""
    return write("eurosat", [f"2750/{name}/{name}_{number}.jpg" for name in LAND for number in range(1, 11)])


def test_land_has_readable_names(land: Path) -> None:
    built = build("eurosat", land)
    assert built.class_names == tuple(LAND.values())
    assert held(built) == {
        split: dict.fromkeys(LAND.values(), count) for split, count in (("train", 5), ("val", 2), ("test", 3))
    }
    assert build("eurosat", land.parent).digest == built.digest
    (land / "2750").rename(land / "EuroSAT_RGB")
    renamed = build("eurosat", land)
    assert (renamed.class_names, renamed.splits.tolist()) == (built.class_names, built.splits.tolist())


def test_land_with_a_missing_or_unknown_class(land: Path) -> None:
    (land / "2750/River").rename(land / "2750/Rivers")
    with pytest.raises(DataError, match=r"2750: class folders missing or unknown: River, Rivers; unpack eurosat again"):
        build("eurosat", land)
    (land / "EuroSAT_RGB").mkdir()
    with pytest.raises(DataError, match=r"eurosat is here twice: 2750 and EuroSAT_RGB; move one of them away"):
        build("eurosat", land)


def test_templates_are_those_of_coop() -> None:
    prompts = {
        "stanford_cars": "a photo of a {}.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "sun397": "a photo of a {}.",
        "ucf101": "a photo of a person doing {}.",
        "eurosat": "a centered satellite photo of {}.",
        "imagenet_a": "a photo of a {}.",
    }
    for name, prompt in prompts.items():
        assert sources.complete(config.parse({"data": {"name": name}})).data.prompt == prompt
