"""A prompt as an MLflow model: images in, classes and probabilities out. MLflow loads it through `_load_pyfunc`."""

from __future__ import annotations

import base64
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp import __version__
from fedpgp.data.sources.decoding import decode
from fedpgp.prompt import Predictor, Prompt, best

if TYPE_CHECKING:
    import pandas as pd

COLUMN = "image"
TOP = 5


class ImageClassifier:
    """What `mlflow.pyfunc.load_model` gives: a table with a column `image` in, a row per image out."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, table: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Classify encoded images (PNG, JPEG, ...).

        Args:
            table: column `image` of bytes, or of base64 text.
            params: `top`, number of classes to name; `classes`, names separated by commas, in place of those that the
                prompt was trained on.

        Returns:
            Columns `class` and `probability`, and lists `classes` and `probabilities` of the `top` best.
        """
        import pandas as pd

        given = params or {}
        names = tuple(name.strip() for name in given.get("classes", "").split(",") if name.strip())
        names = names or self._predictor.class_names
        images = [decode(_bytes(value), f"image {number}") for number, value in enumerate(table[COLUMN])]
        found = best(self._predictor.probabilities(images, names), names, int(given.get("top", TOP)))
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
    """Write an MLflow model (flavour python_function) of a prompt into `folder`, in place of an earlier one.

    The prompt file is copied into it as it is, nothing is pickled; it runs where fedpgp is installed. `weights`, the
    checkpoint file of the backbone where there is one, stays where it is and is named in the model's configuration.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.pyfunc

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # it tells of every step
    if (folder / "MLmodel").is_file():
        shutil.rmtree(folder)
    card = Prompt.load(prompt_file).card
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / prompt_file.name
        shutil.copy2(prompt_file, data)
        mlflow.pyfunc.save_model(
            path=folder,
            loader_module="fedpgp.serving",
            data_path=data,
            signature=_signature(),
            input_example=_example(),
            pip_requirements=[f"fedpgp=={__version__}"],
            model_config={"weights": weights},
            metadata={key: card[key] for key in ("what", "class_names", "metrics")},
        )
    return folder


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ImageClassifier:
    """Called by MLflow with the copy of the prompt file."""
    return ImageClassifier(Predictor(Prompt.load(Path(path)), weights=(model_config or {}).get("weights")))


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import Array

    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Array(DataType.string), "classes"),
        ColSpec(Array(DataType.double), "probabilities"),
    ]
    params = [ParamSpec("top", DataType.long, TOP), ParamSpec("classes", DataType.string, "")]
    return ModelSignature(Schema([ColSpec(DataType.binary, COLUMN)]), Schema(outputs), ParamSchema(params))


def _example() -> pd.DataFrame:
    """A grey picture."""
    import pandas as pd
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(content, "PNG")
    return pd.DataFrame({COLUMN: [content.getvalue()]})


def _bytes(value: bytes | str) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else value
