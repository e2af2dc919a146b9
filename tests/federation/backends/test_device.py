"""The device of a worker: what is set for a GPU, without one; and the line for a full GPU."""

from __future__ import annotations

import os

import pytest
import torch

from fedpgp.core.errors import FedPGPError, ResourceError
from fedpgp.federation.backends import device
from fedpgp.federation.backends.base import SerialBackend

FULL = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 10.00 MiB is "
    "free. 19.79 GiB allowed; Process 1 has 2 GiB memory in use. See documentation for Memory Management (https://x)"
)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that torch seems to see; what is set for it is undone."""
    limits = []
    tf32, filled = torch.backends.cudnn.allow_tf32, torch.utils.deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    monkeypatch.setenv(device.WORKSPACE, "removed")
    monkeypatch.delenv(device.WORKSPACE)
    yield limits
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32, torch.utils.deterministic.fill_uninitialized_memory = tf32, filled


@pytest.mark.parametrize(("gpus", "limited"), [(0.25, [0.25]), (1, [1.0]), (2, [1.0])])
def test_a_gpu_computes_reproducibly_and_in_float32(gpu, gpus, limited):
    assert device.open_device(gpus) == torch.device("cuda")
    assert gpu == limited
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert os.environ[device.WORKSPACE] == ":4096:8"


def test_without_a_share_it_is_the_cpu_and_nothing_is_set(gpu):
    assert device.open_device(0) == torch.device("cpu")
    assert (gpu, torch.are_deterministic_algorithms_enabled()) == ([], False)


def test_the_serial_backend_has_the_same_limit(gpu):
    backend = SerialBackend(1, gpus=0.5)
    backend.close()
    assert gpu == [0.5]


def test_a_gpu_that_does_not_work_is_one_line_with_advice(gpu, monkeypatch):
    def busy(fraction):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", busy)
    with pytest.raises(ResourceError, match=r"devices are busy or unavailable.*nvidia-smi shows"):
        device.open_device(0.5)


class Filling:
    """A job whose worker fills the GPU, at once or in a call."""

    def __init__(self, at_once):
        self.at_once = at_once

    def build(self, device):
        if self.at_once:
            raise torch.OutOfMemoryError(FULL)
        return self

    def train(self, call):
        raise torch.OutOfMemoryError(FULL)


def filled(backend, job):
    backend.load(job)
    list(backend.map("train", [None]))


@pytest.mark.parametrize(("at_once", "what"), [(True, "loading"), (False, "train")])
def test_a_full_gpu_is_one_line_with_advice(at_once, what):
    with pytest.raises(FedPGPError) as error:
        filled(SerialBackend(torch.get_num_threads()), Filling(at_once))
    assert str(error.value) == (
        f"{what}: the memory of the GPU is full (Tried to allocate 20.00 MiB; GPU 0 has a total capacity of 79.15 GiB "
        "of which 10.00 MiB is free); lower federation.chunk_size (clients trained at a time) or resources.actors, "
        "give backbone.class_chunk or backbone.dtype=bfloat16, or raise resources.gpus_per_actor"
    )
    assert error.value.exit_code == 1
