"""The frozen model: image features, text features of hand-written prompts, zero-shot logits."""

from __future__ import annotations

import torch
from agreement import same_logits

from fedpgp import methods


def test_image_features(golden, backbone):
    base = golden("base")
    with torch.no_grad():
        same_logits(backbone.model.encode_image(torch.from_numpy(base["images"])), base["image_features"])


def test_text_features_of_both_anchors(golden, class_set, settings):
    base = golden("base")
    bound = class_set(base["classnames"])
    same_logits(bound.template(), base["text_features_photo"])
    same_logits(bound.placeholder(settings["n_ctx"]), base["text_features_X"])


def test_zero_shot_logits(golden, class_set):
    base = golden("base")
    classifier = methods.create("zero_shot", {}).classifier({}, class_set(base["classnames"]))
    same_logits(classifier(torch.from_numpy(base["image_features"])[None])[0], base["logits_per_image"])
