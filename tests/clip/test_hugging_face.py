"""Hugging Face's CLIP files: equal to the same weights in open_clip's form."""

from __future__ import annotations

import copy
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fedpgp.clip import hub as hub_files
from fedpgp.clip.model import TINY, load
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError

WIDTH = 64
CONFIG = {
    "model_type": "clip",
    "projection_dim": 64,
    "text_config": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu",
    },
}  # fmt: skip
PLAIN = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
LAYER = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1",
         "mlp.c_proj": "mlp.fc2"}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return open_clip.CLIP(**copy.deepcopy(TINY), quick_gelu=True).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def theirs(model):
    """The model's tensors as `CLIPModel` names them, with the constants that older files hold."""
    state = model.state_dict()
    found = {new: state[old].clone() for old, new in PLAIN.items()}
    for ours, tower in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        for layer in range(2):
            old, new = f"{ours}.resblocks.{layer}.", f"{tower}.encoder.layers.{layer}."
            for kind in ("weight", "bias"):
                joined = state[f"{old}attn.in_proj_{kind}"]
                for index, part in enumerate("qkv"):
                    found[f"{new}self_attn.{part}_proj.{kind}"] = joined[index * WIDTH :][:WIDTH].clone()
                for a, b in LAYER.items():
                    found[f"{new}{b}.{kind}"] = state[f"{old}{a}.{kind}"].clone()
    found["text_projection.weight"] = state["text_projection"].T.contiguous()
    found["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    found["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    return found


@pytest.fixture
def folder(tmp_path):
    """A saved model's folder, without its weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": 32})
    )
    return tmp_path


def assert_same(backbone, model):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    tokens = backbone.tokenize(["a cat", "a photo of a dog"])
    assert torch.equal(backbone.model.encode_image(images), model.encode_image(images))
    assert torch.equal(backbone.model.encode_text(tokens), model.encode_text(tokens))
    assert backbone.activation == "quick_gelu"


def refusal(**settings):
    with pytest.raises(BackboneError) as caught:
        load(BackboneSettings(name="tiny", **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin", "wrapped.pt", "half.safetensors"])
def test_a_file_gives_the_same_model(folder, theirs, model, form):
    path = folder / form
    if form == "wrapped.pt":
        torch.save({"state_dict": {f"model.clip.{name}": tensor for name, tensor in theirs.items()}}, path)
    elif form == "pytorch_model.bin":
        torch.save(theirs, path)
    else:
        save_file({name: tensor.half() if "half" in form else tensor for name, tensor in theirs.items()}, path)
    backbone = load(BackboneSettings(name="tiny", weights=str(path)))
    if "half" in form:
        model = copy.deepcopy(model).half().float()
    assert_same(backbone, model)
    assert backbone.image.mean == (0.1, 0.2, 0.3)
    assert backbone.image.std == (0.4, 0.5, 0.6)
    assert backbone.image.interpolation == "bilinear"


def test_the_fingerprint_is_of_the_weights_not_of_their_names(folder, theirs, model):
    torch.save(theirs, folder / "theirs.pt")
    torch.save(model.state_dict(), folder / "ours.pt")
    (one, other) = (
        load(BackboneSettings(name="tiny", weights=str(folder / name), activation="quick_gelu")).fingerprint
        for name in ("theirs.pt", "ours.pt")
    )
    assert one == other


def test_the_activation_is_that_of_the_config_beside_the_file(folder, theirs):
    path = folder / "model.safetensors"
    save_file(theirs, path)
    assert "trained with quick_gelu" in refusal(weights=str(path), activation="gelu")
    (folder / "config.json").unlink()
    assert "does not say which activation" in refusal(weights=str(path))
    other = copy.deepcopy(CONFIG)
    other["text_config"]["hidden_act"] = other["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(other))
    assert load(BackboneSettings(name="tiny", weights=str(path))).activation == "gelu"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip': Input should be 'clip'"),
        (
            {"text_config": CONFIG["text_config"] | {"hidden_act": "gelu"}},
            "hidden_act is gelu and quick_gelu; it must",
        ),
        ({"vision_config": [1]}, "vision_config is [1]: "),
        ({"text_config": CONFIG["text_config"] | {"num_attention_heads": 0}}, "text_config.num_attention_heads is 0: "),
        ({"text_config_dict": {"hidden_act": ["gelu"]}}, "text_config.hidden_act is ['gelu']: "),
        (
            {"vision_config": CONFIG["vision_config"] | {"layer_norm_eps": 1e-6}},
            "vision_config.layer_norm_eps is 1e-06",
        ),
    ],
)
def test_a_config_of_another_model_is_refused(folder, theirs, change, told):
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    assert told in refusal(weights=str(folder / "model.safetensors"))


@pytest.mark.parametrize("described", [{"lr": 0.1}, None])
def test_a_config_of_another_program_says_nothing(folder, theirs, described):
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").unlink()
    if described:
        (folder / "config.json").write_text(json.dumps(described))
    path = str(folder / "model.safetensors")
    assert "does not say which activation" in refusal(weights=path)
    assert load(BackboneSettings(name="tiny", weights=path, activation="gelu")).activation == "gelu"


def test_parts_of_another_model_are_named(folder, theirs):
    torch.save(theirs | {"text_model.head.weight": torch.zeros(3)}, folder / "model.bin")
    assert "does not fit this model: unknown: text_model.head.weight" in refusal(weights=str(folder / "model.bin"))


def test_missing_parts_are_named(folder, theirs):
    torch.save({name: tensor for name, tensor in theirs.items() if ".k_proj." not in name}, folder / "model.bin")
    told = refusal(weights=str(folder / "model.bin"))
    assert "missing: visual.transformer.resblocks.0.attn.in_proj_weight" in told
    assert "unknown: transformer.resblocks.0.self_attn.q_proj." in told


@pytest.fixture
def hub(folder, theirs, monkeypatch):
    """A hub repository of that format; returns its folder."""
    save_file(theirs, folder / "model.safetensors")

    def find(what, repository, *files):
        assert (what, repository) == ("hf-hub:openai/clip-tiny", "openai/clip-tiny")
        return next((folder / file for file in files if (folder / file).is_file()), None)

    monkeypatch.setattr(hub_files, "find", find)
    return folder


def test_a_hub_id_of_that_format_brings_model_weights_and_preprocessing(hub, model):
    backbone = load(BackboneSettings(name="hf-hub:openai/clip-tiny"))
    assert_same(backbone, model)
    assert backbone.image.mean == (0.1, 0.2, 0.3)
    (hub / "preprocessor_config.json").unlink()
    assert load(BackboneSettings(name="hf-hub:openai/clip-tiny")).image.mean == open_clip.OPENAI_DATASET_MEAN
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")  # a name alone does not make it readable
    with pytest.raises(BackboneError, match=r"pytorch_model\.bin: not a checkpoint"):
        load(BackboneSettings(name="hf-hub:openai/clip-tiny"))


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ({"do_normalize": False}, "do_normalize is False"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"resample": 0}, "resample is 0"),
    ],
)
def test_preprocessing_that_is_not_translated_is_refused(hub, described, told):
    (hub / "preprocessor_config.json").write_text(json.dumps(described))
    with pytest.raises(BackboneError, match=told):
        load(BackboneSettings(name="hf-hub:openai/clip-tiny"))


def test_keys_that_a_config_leaves_out_are_those_of_the_published_models(hub):
    (hub / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 512}))
    with pytest.raises(BackboneError) as caught:
        load(BackboneSettings(name="hf-hub:openai/clip-tiny"))
    assert "text_projection (64, 64) instead of (512, 512), visual.class_embedding (64,) instead of (768,)" in str(
        caught.value
    )
