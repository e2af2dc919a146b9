"""Save and load a learned prompt as one file with a card, and classify images with it and its backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedpgp import methods
from fedpgp.clip import images as frozen_images
from fedpgp.clip import model
from fedpgp.clip.text_backbone import ClassSet, freeze
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError, ConfigError, DataError, RunError
from fedpgp.core.files import write_durably
from fedpgp.core.seeding import torch_generator
from fedpgp.core.tree import ParamTree

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = "fedpgp prompt"
VERSION = 1
CARD = "card"
"""Key of the card in the header of the file."""
NEEDED = ("method", "backbone", "class_names", "template")
"""Keys that a card must have."""


@dataclass(frozen=True)
class Prompt:
    """Parameters that one client or the server has learned, without a client axis, and a card that describes them."""

    params: ParamTree
    card: Mapping[str, Any]
    """plain JSON: `method` (name, settings), `backbone` (name, weights, activation, dtype, fingerprint), `class_names`
    that it was trained on, `template`, and further information"""

    def save(self, path: Path) -> None:
        """Write a safetensors file with the card in its header, and the card as a separate JSON file."""
        card = {"format": FORMAT, "version": VERSION, **self.card}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.params.items()}
        write_durably(path, safetensors.torch.save(tensors, {CARD: json.dumps(card, ensure_ascii=False)}))
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
        write_durably(path.with_suffix(".json"), text.encode())

    @classmethod
    def load(cls, path: Path) -> Prompt:
        """Read what `save` wrote. No code in the file is executed.

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
        wrong = _wrong(card)
        if wrong:
            raise RunError(f"{path}: its card is not as `fedpgp export` wrote it: {wrong}; export the prompt again")
        non_finite = [
            key for key, value in params.items() if not value.is_floating_point() or not value.isfinite().all()
        ]
        if non_finite:
            raise RunError(f"{path}: {', '.join(non_finite)} holds values that are not finite; export the prompt again")
        return cls(params, card)


class Predictor:
    """Classifies images with a prompt and its backbone. The classifier of each set of class names is cached."""

    def __init__(self, prompt: Prompt, weights: str | None = None) -> None:
        """Load the backbone that the prompt was trained with.

        Args:
            weights: checkpoint file of the backbone; None: the one that the card names.

        Raises:
            BackboneError: the backbone cannot be loaded, or differs from the one in training.
            ConfigError: the card's method is unknown, or does not have these settings.
        """
        card = prompt.card
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        """the classes that the prompt was trained on"""
        self._prompt = prompt
        self._method = methods.create(card["method"]["name"], card["method"]["settings"], card["method"].get("code"))
        settings = {key: card["backbone"][key] for key in ("name", "weights", "activation", "dtype")}
        settings["weights"] = weights or settings["weights"]
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
            if not all(names) or len(set(names)) < len(names):
                raise DataError(f"class names: each once, and none empty (given: {', '.join(names)})")
            text = freeze(
                self._backbone,
                names,
                self._prompt.card["template"],
                self._method.extra_texts,
                visual="image" in self._method.required_towers,
            ).to("cpu", getattr(torch, self._settings.dtype))
            classes = text.on(range(len(names)))
            self._check_shapes(classes)
            params = {key: value.unsqueeze(0) for key, value in self._prompt.params.items()}
            self._classifiers[names] = self._method.classifier(params, classes)
        return self._classifiers[names]

    def _check_shapes(self, classes: ClassSet) -> None:
        wanted = self._method.init(classes, torch_generator(0, "shapes"))
        shapes = [{key: tuple(value.shape) for key, value in tree.items()} for tree in (self._prompt.params, wanted)]
        if shapes[0] != shapes[1]:
            raise RunError(
                f"prompt: its parameters are {shapes[0]}, those of its method are {shapes[1]}; export it again"
            )


def _wrong(card: Mapping[str, Any]) -> str | None:
    """The first key of a card with an invalid value; None: all are valid."""
    method, backbone, names, template = (card[key] for key in NEEDED)
    if not (
        isinstance(method, dict) and isinstance(method.get("name"), str) and isinstance(method.get("settings"), dict)
    ):
        return "method"
    if (
        not isinstance(backbone, dict)
        or not {"name", "weights", "activation", "dtype", "fingerprint"} <= backbone.keys()
    ):
        return "backbone"
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        return "class_names"
    return None if isinstance(template, str) and template.count("{}") == 1 else "template"


def best(probabilities: Tensor, class_names: Sequence[str], top: int) -> list[list[tuple[str, float]]]:
    """The `top` most probable classes of each image with their probabilities."""
    values, places = probabilities.topk(min(top, len(class_names)), dim=-1)
    return [
        [(class_names[place], value) for place, value in zip(row, numbers, strict=True)]
        for row, numbers in zip(places.tolist(), values.tolist(), strict=True)
    ]
