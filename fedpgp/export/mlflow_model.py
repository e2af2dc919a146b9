"""Export a prompt as an MLflow model that classifies images. MLflow loads it with `_load_pyfunc`."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from fedpgp import __version__, methods
from fedpgp.core.errors import ConfigError, DataError, RunError, UserError
from fedpgp.data.sources.decoding import decode, upright
from fedpgp.export.prompt_file import Predictor, Prompt, best

COLUMN = "image"
TOP = 5


class ImageClassifier:
    """The model that `mlflow.pyfunc.load_model` returns: classifies the images in the column `image` of a table."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Classify encoded images (PNG, JPEG, ...).

        Args:
            table: column `image` of bytes, or of base64 text.
            params: `top`, number of classes to name; `classes`, class names separated by commas; empty: those
                that the prompt was trained on.

        Returns:
            Columns `class` and `probability`, and lists `classes` and `probabilities` of the `top` best.

        Raises:
            MlflowException: invalid image or parameter; a server reports it to its client.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self._ranked(table, **(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None

    def _ranked(self, table: pd.DataFrame, top: int = TOP, classes: str = "") -> pd.DataFrame:
        if top < 1:
            raise ConfigError(f"top: at least 1 (given: {top})")
        if table.empty:
            raise DataError(f"no image: the column `{COLUMN}` has no row")
        given = tuple(name.strip() for name in classes.split(",") if name.strip())
        names = given or self._predictor.class_names
        labels = [f"image {number}" for number in range(len(table))]
        images = [_decoded(value, label) for value, label in zip(table[COLUMN], labels, strict=True)]
        found = best(self._predictor.probabilities(upright(images, labels), names), names, int(top))
        ranked = [([name for name, _ in row], [value for _, value in row]) for row in found]
        return pd.DataFrame(
            {
                "class": [classes[0] for classes, _ in ranked],
                "probability": [values[0] for _, values in ranked],
                "classes": [classes for classes, _ in ranked],
                "probabilities": [values for _, values in ranked],
            }
        )


def save(prompt_file: Path, folder: Path, weights: str | None = None) -> Path:
    """Write an MLflow model (flavour python_function) of a prompt into `folder`, replacing an earlier model.

    The prompt file is copied unchanged, and nothing is pickled. The model needs fedpgp to be installed. `weights`, the
    checkpoint file of the backbone if it has one, is not copied; the model's configuration contains its path.

    Raises:
        RunError: `folder` exists and is not an MLflow model.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.pyfunc
    from mlflow.models import infer_signature

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it logs every step
    if (folder / "MLmodel").is_file():
        shutil.rmtree(folder)
    elif folder.exists():
        raise RunError(f"{folder}: is there already and no MLflow model; export to another folder")
    card = Prompt.load(prompt_file).card
    grey = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(grey, "PNG")
    example = pd.DataFrame({COLUMN: [grey.getvalue()]})
    answer = pd.DataFrame({"class": [""], "probability": [0.0], "classes": [[""]], "probabilities": [[0.0]]})
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / prompt_file.name
        shutil.copy2(prompt_file, data)
        mlflow.pyfunc.save_model(
            path=folder,
            loader_module="fedpgp.export.mlflow_model",
            data_path=data,
            signature=infer_signature(example, answer, {"top": TOP, "classes": ""}),
            input_example=(example, {"classes": "", "top": TOP}),
            code_paths=methods.code_paths(card["method"]["name"]),
            pip_requirements=[f"fedpgp=={__version__}"],
            model_config={"weights": weights},
            metadata={key: card[key] for key in ("what", "class_names", "takes_other_names", "metrics")},
        )
    return folder


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ImageClassifier:
    """Load the model from the copy of the prompt file. Called by MLflow."""
    return ImageClassifier(Predictor(Prompt.load(path, (model_config or {}).get("weights"))))


def _decoded(value: bytes | str, where: str) -> Image.Image:
    try:
        return decode(base64.b64decode(value) if isinstance(value, str) else value, where)
    except binascii.Error:
        raise DataError(f"{where}: text that is not base64; give the bytes of the file, or those as base64") from None
