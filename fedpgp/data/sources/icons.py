"""The data set in the package: icons of many families, divided by drawing into training, validation and test."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from fedpgp.config import DataSettings
from fedpgp.core.seeding import numpy_generator
from fedpgp.data.sources.base import ROW_SCHEMA, Scan
from fedpgp.data.sources.parquet import ParquetSource

ICONS = Path(__file__).parents[2] / "assets" / "icons"
"""Folder of the data set."""
TRAIN, VAL = 5 / 16, 3 / 16
"""Shares of the families of a class; the others, half of them, test."""


class IconsSource(ParquetSource):
    """The data set in the package: 80 classes x 16 icon families (the domains), pictures of 48 x 48 pixels.

    The training, validation and test pictures of a class come from different families, so no drawing is both trained
    on and tested. `data.split_seed` draws these families anew for each class, so that every family serves each split
    for some of the classes.
    """

    name, template, needs_root = "icons", "an icon of a {}.", False

    def __init__(self, settings: DataSettings) -> None:
        """Open the files in the package; of `settings` only the seed of the split is used."""
        super().__init__(settings.model_copy(update={"root": ICONS, "class_names": None}))
        self._seed = settings.split_seed

    def scan(self) -> Scan:
        """List the pictures, each in the split of its class and family."""
        found = super().scan()
        labels, domains = (found.rows[column].to_numpy() for column in ("label", "domain"))
        present = np.zeros((len(found.class_names), len(found.domains)), bool)
        present[labels, domains] = True
        splits = pa.array(divide(present, self._seed)[labels, domains], pa.string())
        place = ROW_SCHEMA.get_field_index("split")
        return Scan(found.class_names, found.domains, found.rows.set_column(place, "split", splits), root=found.root)


def divide(present: np.ndarray, seed: int) -> np.ndarray:
    """Draw the split of each class and family; all drawings of a family of a class stay together.

    Args:
        present: whether a family has a class. bool [classes, families]; a class needs 4 families or more.

    Returns:
        train, val or test; empty where the family lacks the class. str [classes, families]
    """
    generator = numpy_generator(seed, "split")
    splits = np.full(present.shape, "", "U5")
    for label, own in enumerate(present):
        families = generator.permutation(np.flatnonzero(own))
        train, val = round(TRAIN * len(families)), round(VAL * len(families))
        splits[label, families] = ["train"] * train + ["val"] * val + ["test"] * (len(families) - train - val)
    return splits
