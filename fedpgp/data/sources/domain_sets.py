"""PACS, Office-Home, VLCS and Terra Incognita, in the layouts of their releases, of Dassl and of DomainBed."""

from typing import ClassVar

from fedpgp.data.sources.domains import DomainsSource

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
OFFICE_HOME_DOMAINS = ("art", "clipart", "product", "real_world")
VLCS_DOMAINS = ("caltech", "labelme", "pascal", "sun")
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")
TERRA_DOMAINS = ("location_38", "location_43", "location_46", "location_100")
TERRA_CLASSES = (
    "bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel",
)  # fmt: skip


class PACS(DomainsSource):
    """Four domains, seven classes; with its lists DOMAIN_train_kfold.txt and DOMAIN_crossval_kfold.txt.

    In the literature the images of crossval, a tenth, are for validation, and all images of the held-out domain for
    testing. Here they are for testing on the other domains, and `protocol.val_shots` come from train. The lists
    DOMAIN_test_kfold.txt, which name all images of a domain, are not used. Labels of the lists count from 1.
    """

    name = "pacs"
    domains, class_names, first_label = PACS_DOMAINS, PACS_CLASSES, 1
    layouts = tuple(tuple(f"{around}{domain}" for domain in PACS_DOMAINS) for around in ("", "images/", "pacs_data/"))
    lists: ClassVar = {"train_kfold": "train", "crossval_kfold": "test"}
    list_folders = ("", "splits", "pacs_label")
    damaged = ("sketch/dog/n02103406_4068-1.png",)  # ignored by Dassl too
    folders = ("pacs", "PACS", "kfold")
    steps = (
        "PACS.zip, linked from https://github.com/facebookresearch/DomainBed (domainbed/scripts/download.py) -> "
        "ROOT/art_painting, cartoon, photo, sketch",
        "or pacs.zip, linked from Dassl's DATASETS.md, https://github.com/KaiyangZhou/Dassl.pytorch -> ROOT/images, "
        "ROOT/splits",
    )


class OfficeHome(DomainsSource):
    """Four domains, 65 classes in the order of their sorted names; Dassl's train and val are train and test here."""

    name, classes = "office_home", 65
    domains = OFFICE_HOME_DOMAINS
    layouts = (
        *(("Art", "Clipart", "Product", real) for real in ("Real World", "RealWorld", "Real_World", "Real")),
        OFFICE_HOME_DOMAINS,
    )
    split_folders: ClassVar = {"train": "train", "val": "test"}
    folders = ("office_home", "office_home_dg", "OfficeHome", "OfficeHomeDataset_10072016")
    steps = (
        "OfficeHomeDataset_10072016.zip, https://www.hemanthdv.org/officeHomeDataset.html -> ROOT/Art, Clipart, "
        "Product, Real World",
        "or office_home_dg.zip, linked from Dassl's DATASETS.md, https://github.com/KaiyangZhou/Dassl.pytorch -> "
        "ROOT/art, clipart, product, real_world",
    )


class VLCS(DomainsSource):
    """Four domains, five classes: Dassl's DOMAIN/train, crossval, test/0 to 4, or DomainBed's DOMAIN/CLASS."""

    name = "vlcs"
    domains, class_names = VLCS_DOMAINS, VLCS_CLASSES
    layouts = (("CALTECH", "LABELME", "PASCAL", "SUN"), ("Caltech101", "LabelMe", "VOC2007", "SUN09"))
    also_called: ClassVar = {str(number): name for number, name in enumerate(VLCS_CLASSES)}
    split_folders: ClassVar = {"train": "train", "crossval": "val", "test": "test"}
    folders = ("VLCS", "vlcs")
    steps = (
        "vlcs.zip, linked from https://github.com/KaiyangZhou/Dassl.pytorch (dassl/data/datasets/dg/vlcs.py) -> "
        "ROOT/CALTECH, LABELME, PASCAL, SUN",
        "or VLCS.tar.gz, linked from https://github.com/facebookresearch/DomainBed (domainbed/scripts/download.py) -> "
        "ROOT/Caltech101, LabelMe, SUN09, VOC2007",
    )


class TerraIncognita(DomainsSource):
    """Four places of camera traps, the ten classes of DomainBed."""

    name = "terra_incognita"
    domains, class_names = TERRA_DOMAINS, TERRA_CLASSES
    folders = ("terra_incognita",)
    steps = (
        "https://lila.science/datasets/caltech-camera-traps, sorted into folders by domainbed/scripts/download.py of "
        "https://github.com/facebookresearch/DomainBed -> ROOT/location_38, location_43, location_46, location_100",
    )
