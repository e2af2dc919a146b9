"""A learned prompt: saved and loaded as one file with a card, and classifying images with its backbone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from PIL.Image import Image
from torch import Tensor

from fedpgp import methods
from fedpgp.clip import images as frozen_images
from fedpgp.clip import model
from fedpgp.clip.text_backbone import freeze
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError, ConfigError, DataError, RunError
from fedpgp.core.files import write_durably
from fedpgp.core.seeding import torch_generator
from fedpgp.core.text import is_blank
from fedpgp.core.tree import ParamTree, select
from fedpgp.data.sources import decoding
from fedpgp.methods.base import HasServerRule

FORMAT = "fedpgp prompt"
VERSION = 1
CARD = "card"
"""Key of the card in the header of the file."""
NEEDED = ("method", "backbone", "class_names", "template")
"""Keys that a card must have."""


@dataclass(eq=False)
class Prompt:
    """What one client or the server has learned, with its card. Made by `Run.prompt` or `Prompt.load`."""

    params: ParamTree
    """without a client axis"""
    card: Mapping[str, Any]
    """plain JSON: `method` (name, settings), `backbone` (name, weights, activation, dtype, fingerprint), `class_names`
    that it was trained on, `template`, and further information"""
    weights: str | None = None
    """checkpoint file of the backbone; None: what the card names"""

    def __repr__(self) -> str:
        return f"Prompt({self.card.get('what', 'unnamed')!r})"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name, such as `ctx` (N, L, D) and `U`, `V` of FedPGP, without a client axis."""
        return {key: value.numpy(force=True) for key, value in self.params.items()}

    def predict(
        self, images: Iterable[str | Path | Image], classes: Sequence[str] | None = None, top: int = 5
    ) -> pd.DataFrame:
        """Classify images: `top` rows per image with `image`, `rank`, `class` and `probability`.

        The EXIF orientation of photos is applied, which a warning says; images of a data set are used as stored.

        Args:
            images: files or PIL images.
            classes: other class names; None: those the prompt was trained on.

        Raises:
            BackboneError: the backbone's weights are missing or are not those of training.
            DataError: an image cannot be read.
        """
        given = list(images)
        opened = [decoding.read(Path(one), str(one)) if isinstance(one, str | Path) else one for one in given]
        labels = [str(one) if isinstance(one, str | Path) else f"image {number}" for number, one in enumerate(given)]
        predictor = Predictor(self)
        names = tuple(classes) if classes is not None else predictor.class_names
        pixels = [one.convert("RGB") for one in decoding.upright(opened, labels)]
        found = best(predictor.probabilities(pixels, names), names, top)
        return pd.DataFrame(
            [
                {"image": label, "rank": rank, "class": name, "probability": probability}
                for label, answers in zip(labels, found, strict=True)
                for rank, (name, probability) in enumerate(answers, start=1)
            ]
        )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with the card in its header, and the card as JSON beside it; the file."""
        path = Path(path)
        card = {"format": FORMAT, "version": VERSION, **self.card}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.params.items()}
        write_durably(path, safetensors.torch.save(tensors, {CARD: json.dumps(card, ensure_ascii=False)}))
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        write_durably(path.with_suffix(".json"), text.encode())
        return path

    @classmethod
    def load(cls, path: str | Path, weights: str | None = None) -> Prompt:
        """Read what `save` or `fedpgp export` wrote. No code in the file is executed.

        Args:
            weights: checkpoint file of the backbone, if it has one.

        Raises:
            RunError: the file is missing, is not a prompt, or has an unsupported format version.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                params = {key: file.get_tensor(key) for key in sorted(file.keys())}
                card = json.loads((file.metadata() or {}).get(CARD, "{}"))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path}: cannot be read as a prompt ({reason}); see `fedpgp export`") from None
        if not isinstance(card, dict) or card.get("format") != FORMAT or not {*NEEDED, "version"} <= card.keys():
            raise RunError(f"{path}: a safetensors file, but not a prompt that `fedpgp export` wrote")
        if card["version"] != VERSION:
            raise RunError(f"{path}: a prompt of format {card['version']}, this fedpgp reads format {VERSION}")
        if wrong := _wrong(card):
            raise RunError(f"{path}: its card is not as `fedpgp export` wrote it: {wrong}; export the prompt again")
        non_finite = [key for key, value in params.items() if not value.isfinite().all()]
        if non_finite:
            raise RunError(f"{path}: {', '.join(non_finite)} holds values that are not finite; export the prompt again")
        return cls(params, card, weights)


class Predictor:
    """Classifies images with a prompt and its backbone. The classifier of each set of class names is cached."""

    def __init__(self, prompt: Prompt) -> None:
        """Load the backbone that the prompt was trained with.

        Raises:
            BackboneError: the backbone cannot be loaded, or differs from the one in training.
            ConfigError: the card's method is unknown, or does not have these settings.
        """
        card = prompt.card
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        """the classes that the prompt was trained on"""
        self._prompt = prompt
        self._method = methods.create(card["method"]["name"], card["method"]["settings"], card["method"].get("code"))
        settings = {key: card["backbone"][key] for key in ("name", "activation", "dtype")}
        settings["weights"] = prompt.weights or card["backbone"]["weights"]
        self._settings = BackboneSettings(**settings)
        self._backbone = model.load(self._settings)
        if (found := self._backbone.fingerprint) != (wanted := card["backbone"]["fingerprint"]):
            raise BackboneError(
                f"backbone: {settings['name']} with weights {settings['weights']} has fingerprint {found}, the prompt "
                f"was trained with {wanted}; give the weights that it was trained with (--weights FILE)"
            )
        self._classifiers: dict[tuple[str, ...], Any] = {}

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image], class_names: Sequence[str] | None = None) -> Tensor:
        """Probabilities (n, C) of RGB images.

        Args:
            class_names: None: the classes that it was trained on.

        Raises:
            ConfigError: other class names, but the prompt has a context per class.
            RunError: the shapes of the parameters are not those of the method.
            DataError: no or repeated names, or one that does not fit the text tower.
        """
        names = tuple(class_names or self.class_names)
        classifier = self._classifier(names)
        spec, visual = self._backbone.image, self._backbone.model.visual
        pixels = frozen_images.cropped(images, spec)
        features = frozen_images.encode(visual, spec, pixels, self._method.image_inputs, self._settings.dtype)  # type: ignore[arg-type]
        logits: Tensor = classifier(features.unsqueeze(0))[0]
        return logits.softmax(-1)[:, : len(names)]  # further columns belong to FedPGP's other prompt sets

    def _classifier(self, names: tuple[str, ...]) -> Any:
        if names not in self._classifiers:
            if names != self.class_names and not self._method.supports_unseen_classes:
                raise ConfigError(
                    f"class names: this prompt of {self._method.name} has a context of its own for each of its "
                    f"{len(self.class_names)} classes and knows no others"
                )
            if any(map(is_blank, names)) or len(set(names)) < len(names):
                raise DataError(f"class names: each once, and none empty (given: {', '.join(names)})")
            text = freeze(
                self._backbone,
                names,
                self._prompt.card["template"],
                self._method.extra_texts,
                visual="image" in self._method.required_towers,
            ).to("cpu", getattr(torch, self._settings.dtype))
            classes = text.on(range(len(names)))
            own, wanted = self._prompt.params, self._method.init(classes, torch_generator(0, "shapes"))
            learned = select(own, wanted) if isinstance(self._method, HasServerRule) else own
            ours, theirs = ({key: _form(value) for key, value in one.items()} for one in (learned, wanted))
            if ours != theirs:
                raise RunError(f"prompt: its parameters are {ours}, those of its method are {theirs}; export it again")
            params = {key: value.unsqueeze(0) for key, value in own.items()}
            try:
                self._classifiers[names] = self._method.classifier(params, classes)
            except (KeyError, IndexError, RuntimeError):
                if not (sent := {key: _form(value) for key, value in own.items() if key not in wanted}):
                    raise
                raise RunError(f"prompt: {sent} is not what its method needs; export it again") from None
        return self._classifiers[names]


def _wrong(card: Mapping[str, Any]) -> str | None:
    """The first key of a card with an invalid value; None: all are valid."""
    method, backbone, names, template = (card[key] for key in NEEDED)
    named = isinstance(method, dict) and isinstance(method.get("name"), str)
    loadable = {"name", "weights", "activation", "dtype", "fingerprint"}
    valid = {
        "method": named and isinstance(method.get("settings"), dict),
        "backbone": isinstance(backbone, dict) and loadable <= backbone.keys(),
        "class_names": isinstance(names, list) and names and all(isinstance(name, str) and name for name in names),
        "template": isinstance(template, str) and template.count("{}") == 1,
    }
    return next((key for key, good in valid.items() if not good), None)


def _form(value: Tensor) -> str:
    """Type and shape of a parameter."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def best(probabilities: Tensor, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """The `top` most probable classes of each image with their probabilities."""
    values, places = probabilities.topk(min(top, len(class_names)), dim=-1)
    return [
        [(class_names[place], value) for place, value in zip(row, numbers, strict=True)]
        for row, numbers in zip(places.tolist(), values.tolist(), strict=True)
    ]
