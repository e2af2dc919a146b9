"""Backbones: what is loaded, what is refused, and with which words."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from fedpgp.clip import checkpoint_files
from fedpgp.clip import hub as hub_files
from fedpgp.clip.model import TINY, load
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError

ROOT = Path(__file__).parents[2]


def stock(config, quick_gelu=False, seed=0):
    """open_clip's own model of a config, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(**copy.deepcopy(config), quick_gelu=quick_gelu).eval().requires_grad_(False)


def images(size, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def described(**settings):
    """The tiny model with random weights, unless said otherwise."""
    return BackboneSettings(**{"name": "tiny", "weights": "random", **settings})


def refusal(**settings):
    with pytest.raises(BackboneError) as caught:
        load(described(**settings))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture(scope="module")
def tiny():
    return stock(TINY)


@pytest.fixture
def tiny_file(tmp_path, tiny):
    path = tmp_path / "tiny.pt"
    torch.save(tiny.state_dict(), path)
    return path


@pytest.fixture
def small_models(monkeypatch):
    """A small model under names of open_clip's own registry, in both activations."""
    configs = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(configs, "small", copy.deepcopy(TINY))
    monkeypatch.setitem(configs, "small-quickgelu", copy.deepcopy(TINY) | {"quick_gelu": True})
    tags = {
        "quick": {"hf_hub": "some/quick/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3)},
        "plain": {"hf_hub": "some/plain/", "resize_mode": "squash"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", tags)


def test_importing_is_cheap():
    code = "import sys, fedpgp.clip.model; print(sorted({'torch', 'open_clip', 'torchvision'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_random_weights_are_a_function_of_the_name_and_leave_the_global_generator_alone(small_models):
    before = torch.get_rng_state()
    first, again = load(described()), load(described())
    other = load(described(name="small"))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 16
    assert first.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)
    assert not first.model.training
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


def test_random_towers_tell_inputs_apart():
    backbone = load(described())
    texts = backbone.tokenize(["a photo of a red circle.", "a photo of a blue square."])
    coloured = torch.stack([torch.full((3, 32, 32), -2.0), torch.full((3, 32, 32), 2.0)])
    for a, b in (backbone.model.encode_text(texts), backbone.model.encode_image(coloured)):
        assert torch.cosine_similarity(a, b, dim=0) < 0.95


def test_tokenizer_is_clips():
    tokens = load(described()).tokenize(("a photo of a cat.",))
    assert tokens.shape == (1, 77)
    assert tokens[0, :9].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407, 0]


def save(model, form, folder):
    """Write a checkpoint in one of the formats that are in use."""
    state = model.state_dict()
    if form == "safetensors":
        path = folder / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        return path
    path = folder / f"{form}.pt"
    if form == "training":
        state = {"epoch": 3, "name": "x", "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    if form == "openai_dict":
        state = state | {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
        state["vocab_size"] = torch.tensor(49408)
    torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["state_dict", "training", "safetensors", "openai_dict"])
def test_every_file_format_gives_the_same_model(form, tmp_path, tiny):
    path = save(tiny, form, tmp_path)
    backbone = load(described(name="tiny", weights=str(path), activation="quick_gelu"))
    oracle = stock(TINY, quick_gelu=True)
    assert torch.equal(backbone.model.encode_image(images(32)), oracle.encode_image(images(32)))
    tokens = backbone.tokenize(["a cat", "a dog"])
    assert torch.equal(backbone.model.encode_text(tokens), oracle.encode_text(tokens))
    assert backbone.activation == "quick_gelu"


def test_half_precision_files_become_float32(tmp_path, tiny):
    path = save(copy.deepcopy(tiny).half(), "state_dict", tmp_path)
    model = load(described(weights=str(path), activation="gelu")).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.text_projection, tiny.text_projection.half().float())


def test_fingerprint_is_of_values_and_activation_not_of_the_file(tmp_path, tiny):
    def fingerprint(model, form, activation):
        path = save(model, form, tmp_path)
        return load(described(weights=str(path), activation=activation)).fingerprint

    one = fingerprint(tiny, "state_dict", "gelu")
    assert fingerprint(tiny, "safetensors", "gelu") == one
    assert fingerprint(tiny, "state_dict", "quick_gelu") != one
    changed = copy.deepcopy(tiny)
    changed.visual.proj.data[0, 0] += 1e-6
    assert fingerprint(changed, "state_dict", "gelu") != one


def test_a_file_must_state_its_activation(tiny_file):
    told = refusal(weights=str(tiny_file))
    assert str(tiny_file) in told
    assert "backbone.activation" in told
    assert "quick_gelu" in told


def test_an_activation_that_nothing_confirms_is_warned_about(tmp_path, tiny, tiny_file, caplog):
    load(described(weights=str(tiny_file), activation="gelu"))
    (told,) = caplog.messages
    assert told.startswith(f"backbone.activation=gelu: nothing in or beside {tiny_file} confirms it")
    caplog.clear()
    load(described(weights=str(save(tiny, "openai_dict", tmp_path)), activation="quick_gelu"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 64}}))
    load(described(weights=str(tiny_file)))
    assert "trained with gelu" in refusal(weights=str(tiny_file), activation="quick_gelu")
    assert not caplog.messages


def test_openai_state_dict_is_not_run_with_plain_gelu(tmp_path, tiny):
    told = refusal(weights=str(save(tiny, "openai_dict", tmp_path)), activation="gelu")
    assert "trained with quick_gelu" in told
    assert "backbone.activation=quick_gelu" in told


@pytest.fixture
def archive(tmp_path, tiny):
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(copy.deepcopy(tiny)), path)
    return path


def test_an_unpublished_torchscript_archive_is_never_opened(archive, monkeypatch):
    def opened(*_, **__):
        raise AssertionError("the archive was opened")

    monkeypatch.setattr(torch.jit, "load", opened)
    monkeypatch.setattr(torch, "load", opened)
    for activation in (None, "quick_gelu"):
        told = refusal(weights=str(archive), activation=activation)
        assert "TorchScript" in told
        assert sha256(archive) in told


def test_a_published_torchscript_archive_implies_quick_gelu(archive, monkeypatch):
    digest = sha256(archive)
    monkeypatch.setattr(checkpoint_files, "published_digests", lambda: frozenset({digest}))
    backbone = load(described(weights=str(archive)))
    assert backbone.activation == "quick_gelu"
    oracle = stock(TINY, quick_gelu=True)
    assert torch.equal(backbone.model.encode_image(images(32)), oracle.encode_image(images(32)))
    assert "trained with quick_gelu" in refusal(weights=str(archive), activation="gelu")


def test_the_published_digests_are_openais_nine():
    digests = checkpoint_files.published_digests()
    assert "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f" in digests  # ViT-B-16
    assert len(digests) == 9


class Intruder:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_are_not_plain_tensors_are_refused(tmp_path, tiny_file):
    trap = tmp_path / "executed"
    unreadable = "not a checkpoint, or damaged"
    bad = {
        "object.pt": "only state_dict (a posix.mkdir, a Python object, which is never loaded)",
        "torn.pt": unreadable,
        "gap.pt": unreadable,
        "empty.pth": unreadable,
        "text.bin": unreadable,
        "x.safetensors": unreadable,
        "n.pt": "only layers (int)",
    }
    torch.save({"state_dict": Intruder(trap)}, tmp_path / "object.pt")
    (tmp_path / "torn.pt").write_bytes(tiny_file.read_bytes()[:-1000])
    (tmp_path / "gap.pt").write_bytes(tiny_file.read_bytes()[-300:])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.bin").write_text("hello")
    (tmp_path / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    torch.save({"layers": 3}, tmp_path / "n.pt")
    for name, why in bad.items():
        told = refusal(weights=str(tmp_path / name), activation="gelu")
        assert str(tmp_path / name) in told
        assert why in told
    assert not trap.exists()


def test_a_missing_file_is_named(tmp_path):
    assert "no such file: " + str(tmp_path / "x.pt") in refusal(weights=str(tmp_path / "x.pt"), activation="gelu")


def test_the_checkpoint_of_another_model_is_told_by_keys_and_shapes(tmp_path):
    other = copy.deepcopy(TINY)
    other["vision_cfg"]["image_size"] = 64
    other["text_cfg"]["layers"] = 3
    path = save(stock(other), "state_dict", tmp_path)
    told = refusal(weights=str(path), activation="gelu")
    assert "tiny" in told
    assert str(path) in told
    assert "of another shape: visual.positional_embedding (65, 64) instead of (17, 64)" in told
    assert "unknown: transformer.resblocks.2.ln_1.weight" in told
    assert "and 9 more" in told
    other["text_cfg"]["layers"] = 1
    assert "missing: transformer.resblocks.1." in refusal(
        weights=str(save(stock(other), "state_dict", tmp_path)), activation="gelu"
    )


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = stock(TINY)
    model.visual.proj.data[0, 0] = float("nan")
    told = refusal(weights=str(save(model, "state_dict", tmp_path)), activation="gelu")
    assert "not finite: visual.proj; the file is damaged" in told


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("roberta-ViT-B-32", "hf_model_name=roberta-base"),
        ("coca_ViT-B-32", "embed_cls=True, multimodal_cfg (CoCa)"),
        ("ViT-B-16-SigLIP", "no_causal_mask=True"),
        ("ViT-H-14-CLIPA", "pool_type=last"),
        ("ViT-L-14-worldwide", "pool_type=eos"),
        ("MobileCLIP-S1", "no_causal_mask=True"),
    ],
)
def test_other_text_towers_are_refused_by_name(name, why):
    told = refusal(name=name)
    assert name in told
    assert why in told


def test_unknown_names_get_the_nearest_known_ones():
    assert "did you mean ViT-B-16" in refusal(name="ViT-B16")
    assert "did you mean tiny" in refusal(name="tyny")


def test_a_slash_in_a_model_name_is_read_as_open_clip_does():
    assert "ViT-B-16-quickgelu" in refusal(name="ViT-B/16", weights="openai")


@pytest.mark.parametrize(
    ("settings", "right"),
    [
        ({"name": "ViT-B-16", "weights": "openai"}, ("quick_gelu", "backbone.name=ViT-B-16-quickgelu")),
        ({"name": "ViT-B-16-quickgelu", "weights": "laion2b_s34b_b88k"}, ("gelu", "backbone.name=ViT-B-16 ")),
        ({"name": "ViT-B-16", "weights": "laion2b_s34b_b88k", "activation": "quick_gelu"}, ("gelu", "name=ViT-B-16 ")),
        ({"name": "ViT-B-16-quickgelu", "weights": "openai", "activation": "gelu"}, ("quick_gelu", "-quickgelu ")),
        ({"name": "ViT-B-16-quickgelu", "weights": "random", "activation": "gelu"}, ("quick_gelu", "-quickgelu ")),
    ],
)
def test_activations_that_disagree_are_refused_with_the_right_name(settings, right):
    told = refusal(**settings)
    assert f"trained with {right[0]}" in told
    assert right[1] in told


def test_unknown_tags_are_refused_with_the_known_ones():
    told = refusal(name="ViT-B-16", weights="opennai")
    assert "'opennai'" in told
    assert "laion2b_s34b_b88k" in told
    assert "tags: none" in refusal(name="tiny", weights="openai")
    assert "None is not a file" in refusal(name="ViT-B-16", weights=None)


def test_a_tag_brings_weights_activation_and_preprocessing(small_models, tiny_file, monkeypatch):
    monkeypatch.setattr(hub_files, "find", lambda what, repository, *files: tiny_file)
    quick = load(described(name="small-quickgelu", weights="quick"))
    assert quick.activation == "quick_gelu"
    assert quick.image.mean == (0.1, 0.2, 0.3)
    plain = load(described(name="small", weights="plain"))
    assert plain.activation == "gelu"
    assert plain.image.resize_mode == "squash"
    assert plain.image.mean == open_clip.OPENAI_DATASET_MEAN
    assert quick.image.digest != plain.image.digest
    stated = load(described(name="small", weights="quick", activation="quick_gelu"))
    assert stated.fingerprint == quick.fingerprint


def test_without_network_the_way_out_is_told(small_models, monkeypatch):
    def offline(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(hub_files, "_fetched", offline)
    for told in (refusal(name="small", weights="plain"), refusal(name="hf-hub:some/model", weights=None)):
        assert "cannot be fetched" in told
        assert "Name or service not known" in told
        assert "backbone.weights=FILE" in told
        assert "backbone.activation" in told


@pytest.fixture
def hub(tmp_path, tiny_file, monkeypatch):
    """A hub of one model; returns its config, to be changed."""
    config = {"model_cfg": copy.deepcopy(TINY) | {"quick_gelu": True}, "preprocess_cfg": {"interpolation": "bilinear"}}

    def find(what, repository, *files):
        assert (what, repository) == ("hf-hub:some/model", "some/model")
        if files[0] == "open_clip_model.safetensors":
            return tiny_file
        path = tmp_path / files[0]
        path.write_text(json.dumps(config))
        return path

    monkeypatch.setattr(hub_files, "find", find)
    return config


def test_hub_models_bring_config_weights_and_preprocessing(hub):
    backbone = load(described(name="hf-hub:some/model", weights=None))
    assert backbone.activation == "quick_gelu"
    assert backbone.image.interpolation == "bilinear"
    oracle = stock(TINY, quick_gelu=True)
    assert torch.equal(backbone.model.encode_image(images(32)), oracle.encode_image(images(32)))


def test_hub_models_are_checked_like_others(hub):
    assert "give null" in refusal(name="hf-hub:some/model", weights="random")
    assert "trained with quick_gelu" in refusal(name="hf-hub:some/model", weights=None, activation="gelu")
    hub["model_cfg"]["quick_gelu"] = False
    assert "trained with gelu" in refusal(name="hf-hub:some/model", weights=None, activation="quick_gelu")
    hub["model_cfg"]["text_cfg"]["no_causal_mask"] = True
    assert "no_causal_mask=True" in refusal(name="hf-hub:some/model", weights=None)


def test_timm_towers_are_not_called_quick_gelu():
    assert "timm" in refusal(name="convnext_tiny", activation="quick_gelu")


def test_reference_model_loads_and_encodes_as_the_reference_does(tmp_path, monkeypatch, golden_folder):
    with np.load(golden_folder / "base.npz") as arrays:
        base = dict(arrays)
    state = {name[3:]: torch.tensor(array) for name, array in base.items() if name.startswith("sd/")}
    patches, patch = state["visual.positional_embedding"].shape[0] - 1, state["visual.conv1.weight"].shape[-1]
    vision = {"image_size": base["images"].shape[-1], "patch_size": patch, "width": state["visual.proj"].shape[0]}
    text = TINY["text_cfg"] | {"width": state["text_projection"].shape[0]}
    for tower, prefix in ((vision, "visual."), (text, "")):
        tower["layers"] = sum(name.startswith(f"{prefix}transformer") and "in_proj_w" in name for name in state)
    text["heads"] = text["width"] // 64
    config = {"embed_dim": state["visual.proj"].shape[1], "vision_cfg": vision, "text_cfg": text}
    assert patches == (vision["image_size"] // patch) ** 2
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "golden", config)
    torch.save(state, tmp_path / "golden.pt")
    backbone = load(described(name="golden", weights=str(tmp_path / "golden.pt"), activation="quick_gelu"))
    shown = backbone.model.encode_image(torch.tensor(base["images"]))
    assert torch.allclose(shown, torch.tensor(base["image_features"]), atol=1e-5)
    tokens = backbone.tokenize([f"a photo of a {str(name).replace('_', ' ')}." for name in base["classnames"]])
    assert torch.equal(tokens, torch.tensor(base["tokens_photo"]).long())
    assert torch.allclose(backbone.model.encode_text(tokens), torch.tensor(base["text_features_photo"]), atol=1e-5)
    assert backbone.logit_scale == pytest.approx(float(np.exp(base["sd/logit_scale"])))


@pytest.fixture(scope="module")
def vit_b_16():
    return stock(open_clip.get_model_config("ViT-B-16"), quick_gelu=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["state_dict", "training", "safetensors", "openai_dict", "archive"])
def test_vit_b_16_in_every_format(form, vit_b_16, tmp_path, monkeypatch):
    source = vit_b_16
    if form == "archive":
        path, activation = tmp_path / "archive.pt", None
        torch.jit.save(torch.jit.script(source), path)
        digest = sha256(path)
        monkeypatch.setattr(checkpoint_files, "published_digests", lambda: frozenset({digest}))
    else:
        path, activation = save(source, form, tmp_path), "quick_gelu"
    backbone = load(described(name="ViT-B-16", weights=str(path), activation=activation))
    named = load(described(name="ViT-B-16-quickgelu", weights=str(path), activation=activation))
    assert backbone.fingerprint == named.fingerprint
    assert backbone.image.size == 224
    assert backbone.activation == "quick_gelu"
    with torch.inference_mode():
        assert torch.equal(backbone.model.encode_image(images(224, 1)), source.encode_image(images(224, 1)))
        tokens = backbone.tokenize(["a photo of a cat."])
        assert torch.equal(backbone.model.encode_text(tokens), source.encode_text(tokens))
