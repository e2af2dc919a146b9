"""Shared fixtures: a server of three clients that train one or two weights."""

import pytest
from one_weight import IMAGES, one_weight

from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server


@pytest.fixture
def server(tmp_path):
    backends = []

    def make(shared, images=IMAGES, **changes):
        job = one_weight(tmp_path, shared, images, **changes)
        backend = SerialBackend(threads=1)
        backends.append(backend)
        backend.load(job)
        return Server(job, backend)

    yield make
    for backend in backends:
        backend.close()
