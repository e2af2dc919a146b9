"""Local training never waits for a GPU between steps, shown on the meta device, whose tensors have no values to read.

Copies to the device are counted for two numbers of steps; operators that wait for a result of their own, and those that
have no reproducible form, are known by their names.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fedpgp import methods
from fedpgp.bench.methods import Setting
from fedpgp.clip import model
from fedpgp.clip.images import _channels
from fedpgp.config import BackboneSettings
from fedpgp.federation import training
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.client import local_update
from fedpgp.federation.server import Server
from fedpgp.methods.base import PreparesRound

META = torch.device("meta")
WAIT = {
    "fedotp": "stops Sinkhorn's iteration when the plan changes little",
    "pfedpt": "selects the images that are not padding",
    "fedpha": "decomposes the global prompt",
}
"""Methods whose steps wait, and what for. Their docstrings say so."""
TRAINED = sorted(name for name, _, kind in methods.available() if isinstance(kind, type) and name != "zero_shot")


KERNELS = {"aten::_linalg_svd", "aten::_linalg_eigh", "aten::_local_scalar_dense", "aten::nonzero"}
"""Operators that wait for a result of their own."""


UNORDERED = (
    "adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward", "reflection_pad",
    "upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "grid_sampler_2d_backward", "nll_loss2d",
    "ctc_loss_backward", "put_", "histc", "bincount", "median",
)  # fmt: skip
"""Operators that add up in no fixed order on a GPU, and raise there: torch has no other form of them."""


class Done(Exception):
    """Local training has ended; what the server does with its result needs values."""


class Waiting(TorchDispatchMode):
    """Counts what waits for a GPU: copies from the CPU that are not asynchronous, and decompositions."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.name().split(".")[0]
        assert not name.removeprefix("aten::").lstrip("_").startswith(UNORDERED)
        if name in KERNELS or (
            isinstance(result, torch.Tensor) and result.device == META and copies(name, args, kwargs)
        ):
            self.found[name] += 1
        return result


def copies(name, args, kwargs):
    """Whether an operator on the meta device is a copy from the CPU that waits."""
    if name == "aten::copy_":
        return args[1].device.type == "cpu" and args[2:3] != (True,)
    return name == "aten::_to_copy" and args[0].device.type == "cpu" and not (kwargs or {}).get("non_blocking")


class OfNumbers(TorchFunctionMode):
    """Counts tensors that are made of numbers of Python on the meta device, which on a GPU are copies."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.tensor, torch.as_tensor) and (kwargs or {}).get("device") == META:
            self.found["numbers"] += 1
        return func(*args, **(kwargs or {}))


def waits(name, steps, tmp_path, monkeypatch):
    """What local training of two clients on the meta device waits for, with that many steps each."""
    backbone = model.load(BackboneSettings(name="tiny", weights="random"))
    method = methods.create(name, {"depth": 2} if name == "fedmaple" else {})
    setting = Setting(backbone, clients=2, classes=6, images=4, steps=steps, threads=1)
    job = setting.job(method, setting.text([method]), tmp_path)
    backend, counter = SerialBackend(1), Waiting()
    backend._device = META
    backend.load(job)
    server = Server(job, backend)
    state = server.initial_state()
    if isinstance(method, PreparesRound):  # once per round, where it may wait
        common, own = job.rule.broadcast(state.server, state.shared, job.data.training_clients)
        prepared = method.prepare({**common, **own}, job.text.on(job.data.class_sets[job.data.train_set]))
        prepared = {key: value.to(META) for key, value in prepared.items()}
        monkeypatch.setattr(type(method), "prepare", lambda self, received, frozen: prepared)

    def counted(*args, **kwargs):
        with counter, OfNumbers(counter.found):
            local_update(*args, **kwargs)
        raise Done

    monkeypatch.setattr(training, "local_update", counted)
    with closing(backend), pytest.raises(Done):
        server.step(state)
    monkeypatch.undo()
    return counter.found


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in WAIT])
def test_no_step_waits(name, tmp_path, monkeypatch):
    once = waits(name, 1, tmp_path, monkeypatch)
    assert waits(name, 3, tmp_path, monkeypatch) <= once  # less if the first one made constants


@pytest.mark.parametrize("name", ["fedotp", "pfedpt"])
def test_a_step_that_reads_values_is_seen(name, tmp_path, monkeypatch):
    with pytest.raises(NotImplementedError, match=r"torch.nonzero\(\)"):  # they select rows by a mask
        waits(name, 1, tmp_path, monkeypatch)


def test_a_step_that_decomposes_a_matrix_is_seen(tmp_path, monkeypatch):
    more, once = (waits("fedpha", steps, tmp_path, monkeypatch)["aten::_linalg_svd"] for steps in (3, 1))
    assert (more, once) == (3, 1)


def test_a_copy_in_every_step_is_seen(tmp_path, monkeypatch):
    """Mean and standard deviation of the pixels, made anew in each of two more steps."""
    found = []
    for steps in (1, 3):
        monkeypatch.setattr("fedpgp.clip.images._channels", _channels.__wrapped__)
        found.append(waits("fedmaple", steps, tmp_path, monkeypatch)["numbers"])
    assert found[1] == found[0] + 4
