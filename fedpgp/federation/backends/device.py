"""The device of a worker: its choice, equal bits and limited memory on a GPU, and advice when that memory is full."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedpgp.core.errors import FedPGPError, ResourceError
from fedpgp.core.text import one_line

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
ADVICE = (
    "lower federation.chunk_size (clients trained at a time) or resources.actors, give backbone.class_chunk or "
    "backbone.dtype=bfloat16, or raise resources.gpus_per_actor"
)


def open_device(gpus: float) -> torch.device:
    """The first GPU that this process sees if it has a share of one, else the CPU. On a GPU, see `reproducible`.

    Raises `ResourceError` if the GPU does not work.

    Args:
        gpus: GPUs of this process. Below 1 torch refuses to take more than that share of the memory: Ray's fractions do
            not isolate it. 0: the CPU.
    """
    if not gpus or not torch.cuda.is_available():
        return torch.device("cpu")
    reproducible()
    try:
        torch.cuda.set_per_process_memory_fraction(min(gpus, 1.0))
    except RuntimeError as error:  # its first use: another process has it, or its driver does not fit
        raise ResourceError(
            f"the GPU cannot be used ({one_line(error)[:200]}); nvidia-smi shows its processes, mode and driver, and "
            "resources.gpus_per_actor=0 computes on the CPU"
        ) from None
    return torch.device("cuda")


def reproducible() -> None:
    """Make equal work give equal bits on a GPU, and float32 mean float32. Affects the whole process permanently.

    Sums in an order that varies (of gradients of repeated rows, of fused attention) are replaced by ordered ones, and
    convolutions do not round their inputs to 10 bits (TF32), which torch allows by default. An operator that has no
    ordered form raises `RuntimeError`; no method of this package uses one.
    """
    os.environ.setdefault(WORKSPACE, ":4096:8")  # read when a process first multiplies matrices on a GPU
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def memory_advice(what: str) -> Iterator[None]:
    """Raise `FedPGPError`, one line with advice, if the memory of the GPU is full while `what` is done."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = "; ".join(str(error).split(". ")[1:3])  # what was asked for, and what the GPU has
        raise FedPGPError(f"{what}: the memory of the GPU is full ({reason}); {ADVICE}") from None
