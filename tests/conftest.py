"""What all tests share: a home of their own, one thread, and one Ray for those that ask for it."""

from __future__ import annotations

import os
import tempfile
import uuid

import pytest

# Before ray is imported anywhere: a local Ray writes a token into the home folder.
os.environ["HOME"] = tempfile.mkdtemp(prefix="fedpgp-test-home-")
for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
    os.environ.pop(variable, None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex
os.environ["RAY_TMPDIR"] = os.environ["HOME"]  # where sessions keep their logs and sockets
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"


def pytest_sessionfinish():
    import shutil

    shutil.rmtree(os.environ["HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray with 4 CPUs and 2 GPUs that do not exist."""
    import ray

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()
