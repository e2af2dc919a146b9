"""Checkpoint files as training programs write them: what is read, and what is refused, with which words."""

from __future__ import annotations

import argparse
import collections
import datetime
import functools
import json
import logging
import os
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fedpgp.clip import weights
from fedpgp.clip.model import load
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError


@pytest.fixture(scope="module")
def state():
    """The tensors of the tiny model."""
    return load(BackboneSettings(name="tiny", weights="random")).model.state_dict()


@pytest.fixture
def saved(tmp_path):
    """Save an object as a checkpoint."""

    def save(content, **options):
        path = tmp_path / "checkpoint.pt"
        torch.save(content, path, **options)
        return path

    return save


def behind(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def assert_read(path, state, key=None, place=""):
    found = weights.read(path, key)
    assert found.tensors.keys() == state.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.items())
    assert found.place == place


def refusal(path, key=None):
    with pytest.raises(BackboneError) as caught:
        weights.read(path, key)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", ["model_state_dict", "model", "ema", "state_dict", "net", "params"])
def test_one_mapping_of_tensors_is_unwrapped(state, saved, key):
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    assert_read(saved({"epoch": 3, key: state, "optimizer": optimizer, "queue": torch.zeros(2)}), state, place=key)
    assert_read(saved({"run": {"last": {key: state}}}), state, place=f"run.last.{key}")
    assert_read(saved((3, {key: state})), state, place=f"1.{key}")


@pytest.mark.parametrize("prefix", ["module", "model", "clip", "model.clip", "student.backbone"])
def test_one_prefix_is_removed(state, saved, prefix):
    others = {"n_averaged": torch.tensor(3), "head.weight": torch.zeros(2)}
    path = saved({"state_dict": behind(f"{prefix}.", state) | others, "epoch": 2})
    assert_read(path, state, place=f"state_dict.{prefix}")
    assert weights.read(path).left_out == tuple(others)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_of_wrappers_are_removed_wherever_they_are(state, saved, wrapper):
    inside = {name.replace("resblocks.", f"resblocks.{wrapper}."): tensor for name, tensor in state.items()}
    assert_read(saved(behind(f"module.{wrapper}.", inside)), state, place="module")
    assert_read(saved(behind(f"{wrapper}.", state)), state)


def test_the_text_tower_of_a_custom_text_model_fits_a_plain_one(state, saved):
    custom = {name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
              for name, tensor in state.items()}  # fmt: skip
    path = saved({"state_dict": behind("model.", custom)})
    settings = BackboneSettings(name="tiny", weights=str(path), activation="gelu")
    loaded = load(settings).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def loaded(path):
    return load(BackboneSettings(name="tiny", weights=str(path), activation="gelu")).model.state_dict()


def test_modules_beside_the_model_are_left_out_and_said(state, saved, caplog):
    """The names of a model without a prefix say as well what is part of it."""
    caplog.set_level(logging.INFO, logger="fedpgp")
    found = loaded(saved({"model": state | {"criterion.weight": torch.zeros(3), "logit_bias": torch.zeros(())}}))
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert any(line.endswith("not used: criterion.weight, logit_bias") for line in caplog.messages)
    assert any(line.endswith("the weights of 'model'; not used: -") for line in caplog.messages)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"transformer.resblocks.2.ln_1.weight": 1},
            "unknown: transformer.resblocks.2.ln_1.weight; check backbone.name",
        ),
        ({"text.cls_emb": 1}, "unknown: cls_emb; check backbone.name"),
        ({"transformer.resblocks.0.mlp.c_fc.lora_A.weight": 1}, "lora_A.weight; merge its adapters and save it again"),
        ({"criterion.weight": 1, "logit_scale": None}, "missing: logit_scale; unknown: criterion.weight; check"),
    ],
)
def test_what_does_not_fit_is_named(state, saved, changed, told):
    content = {name: None if size is None else torch.zeros(size) for name, size in changed.items()}
    with pytest.raises(BackboneError) as caught:
        loaded(saved(state | content))
    assert "the checkpoint does not fit this model: " in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize(("save", "suffix"), [(save_file, ".safetensors"), (torch.save, ".bin")])
def test_a_checkpoint_in_several_files_is_read_by_its_index(state, tmp_path, save, suffix):
    names, files = sorted(state), [f"model-0000{part}-of-00002{suffix}" for part in (1, 2)]
    for part, file in enumerate(files):
        save({name: state[name].clone() for name in names[part::2]}, tmp_path / file)
    index = tmp_path / f"model{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}))
    assert_read(index, state)
    assert f"one of several files of a checkpoint; give model{suffix}.index.json" in refusal(tmp_path / files[0])
    (tmp_path / files[1]).unlink()
    assert f"{files[1]} missing beside it; fetch all files" in refusal(index)
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    assert "secret.bin missing beside it" in refusal(index)
    index.write_text("{}")
    assert "not an index of weights ('weight_map'); fetch it again" in refusal(index)


@pytest.mark.parametrize("text", ["<html>404</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:0"])
def test_a_text_in_place_of_a_checkpoint_is_shown(tmp_path, text):
    (tmp_path / "w.pt").write_text(text)
    assert f"not a checkpoint, or damaged (text: {text[:40]!r})" in refusal(tmp_path / "w.pt")


def test_several_models_are_named_and_one_is_chosen(state, saved):
    other = {name: tensor + 1 for name, tensor in state.items()}
    path = saved({"model": state, "ema": other, "epoch": 3})
    assert "several models: model, ema; choose one by backbone.weights_key" in refusal(path)
    assert_read(path, other, "ema", "ema")
    assert_read(path, state, "model", "model")
    assert "has no model 'emma', only model, ema" in refusal(path, "emma")
    path = saved(behind("student.", state) | behind("teacher.", other))
    assert "several models: student, teacher" in refusal(path)
    assert_read(path, other, "teacher", "teacher")
    both = load(BackboneSettings(name="tiny", weights=str(path), activation="gelu", weights_key="teacher"))
    assert torch.equal(both.model.positional_embedding, other["positional_embedding"])


class Metrics(dict):
    """A mapping of a training program's own class, with attributes."""

    def __init__(self, **values):
        super().__init__(values)
        self.best = 0.5


@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (False, 2), (False, 4), (True, 4), (True, 5)])
def test_what_lies_beside_the_tensors_is_skipped(state, saved, zipped, protocol):
    beside = {
        "args": argparse.Namespace(lr=0.1, model="ViT-B-16"),
        "when": datetime.datetime(2024, 11, 28),
        "best": np.float64(0.7),
        "history": np.arange(3),
        "path": pathlib.PurePosixPath("/data"),
        "metrics": Metrics(acc=0.5),
        "log": collections.deque([1, 2], 5),
        "counts": collections.defaultdict(list, a=[1]),
        "transform": functools.partial(int, base=2),
        "classes": {"cat", "dog"},
    }
    options = {"_use_new_zipfile_serialization": zipped, "pickle_protocol": protocol}
    assert_read(saved({"model": state, **beside}, **options), state, place="model")


class Intruder:
    """Unpickling this would create a folder."""

    def __init__(self, path, function=os.mkdir):
        self.path, self.function = path, function

    def __reduce__(self):
        return self.function, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("function", [os.mkdir, torch.load, eval, pathlib.Path.mkdir])
def test_code_in_a_checkpoint_never_runs(state, saved, tmp_path, function, zipped):
    trap = tmp_path / "executed"
    content = {"model": state, "hook": Intruder(trap, function)}
    assert_read(saved(content, _use_new_zipfile_serialization=zipped), state, place="model")
    assert not trap.exists()


def test_a_pickle_cannot_change_torch(state, saved):
    """A state that it sets on a function of torch itself is ignored."""
    path = saved({"model": state, "odd": "MARKER", "args": argparse.Namespace()})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    marked, attack = b"X\6\0\0\0MARKER", b"ctorch._utils\n_rebuild_tensor_v2\n}X\7\0\0\0changedK\1sb"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            assert (marked in content) == name.endswith("data.pkl")
            archive.writestr(name, content.replace(marked, attack))
    assert_read(path, state, place="model")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "changed")


def test_a_whole_pickled_model_is_refused_by_its_class(saved):
    told = refusal(saved(load(BackboneSettings(name="tiny", weights="random")).model))
    assert "only a open_clip.model.CLIP, a Python object, which is never loaded" in told
    assert "save the model's state_dict()" in told


def test_a_file_without_a_model_is_refused_by_what_it_holds(state, saved):
    told = refusal(saved({"args": argparse.Namespace(lr=1), "epoch": 3, "optimizer": {"lr": 0.1}}))
    assert "only args (a argparse.Namespace, a Python object, which is never loaded), epoch (int)" in told
    assert "optimizer (a mapping)" in told
    assert "only int" in refusal(saved(3))
    told = refusal(saved({"a": {"x": torch.zeros(1)}, "b": {"y": torch.zeros(1)}}))
    assert "only a (a mapping), b (a mapping)" in told
