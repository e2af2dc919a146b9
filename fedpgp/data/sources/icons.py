"""The data set inside the package: named drawings of open icon families, which are its domains."""

from __future__ import annotations

from pathlib import Path

from fedpgp.config import DataSettings
from fedpgp.data.sources.parquet import ParquetSource

FOLDER = Path(__file__).parents[2] / "assets" / "icons"


class IconsSource(ParquetSource):
    """80 classes x 8 icon families (the domains), pictures of 48 x 48 pixels, split by drawing.

    The training, validation and test pictures of a class come from different families, so that a drawing that was
    trained on is never tested. Every family serves each split for a part of the classes.
    """

    name, template, needs_root = "icons", "an icon of a {}.", False

    def __init__(self, settings: DataSettings) -> None:
        """Everything lies in the package; `settings` choose nothing here."""
        super().__init__(settings.model_copy(update={"root": FOLDER, "class_names": None}))
