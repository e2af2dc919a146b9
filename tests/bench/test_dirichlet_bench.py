"""Unequal clients: who has which images, what whole blocks would cost, and the figures of the benches."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from rounds import check_same_bits

from fedpgp.bench import dirichlet as bench
from fedpgp.bench.workload import BASE, job
from fedpgp.config import ResourceSettings
from fedpgp.federation.backends.actors import ActorPool
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.server import Server


@pytest.fixture
def small(workload):
    return replace(workload, base=BASE[:4], novel=())


def quiet(line):
    pass


def test_every_image_has_one_client_and_small_beta_is_more_unequal():
    labels = np.repeat(np.arange(10), 200)
    sizes = {}
    for beta in bench.BETAS:
        parts = bench.shares(labels, 100, beta)
        assert sorted(np.concatenate(parts)) == list(range(2000))
        sizes[beta] = [len(part) for part in parts]
        assert min(sizes[beta]) >= 1
    assert np.std(sizes[0.1]) > np.std(sizes[0.3]) > np.std(sizes[1.0])


def test_images_and_steps_of_a_divided_job(small, tmp_path):
    """8 images of each of 4 classes, in batches of 4; 9 images are 3 steps and 23 are 6."""
    wanted = bench.divided(job(small, tmp_path, 1, 8, 4, (0, 0)), [np.arange(9), np.arange(9, 32)])
    assert [len(rows) for rows in wanted.data.train_rows] == [9, 23]
    assert wanted.data.train_labels[0].tolist() == [0] * 8 + [1]
    assert bench.steps(wanted).tolist() == [3, 6]


def test_cost_of_whole_blocks():
    """Blocks of ten: one of nine clients with 1 step and one with 11, one with 2 steps each: (110 + 20) / 40."""
    assert bench.whole_blocks(np.array([1] * 9 + [11] + [2] * 10)) == 130 / 40
    assert bench.whole_blocks(np.full(30, 3)) == 1


def test_schedule_is_longest_first():
    """Two actors do 5 + 3 and 4 + 3 + 3: busy for 18 of 2 x 10."""
    assert bench.schedule([3, 4, 3, 5, 3], 2) == 18 / 20
    assert bench.schedule([7], 4) == 1 / 4
    assert bench.schedule([10] * 8 + [5] * 4, 4) == 1  # 100 equal clients in blocks of ten, the last two cut in half


def test_figures(small):
    found = json.loads(bench.measure(1, quiet, 320, small, clients=20).as_json())
    assert found["bench"] == "dirichlet"
    kinds = ("cost_over_sum_of_steps", "cpu_cost_over_sum_of_steps", "cost_of_whole_blocks", "seconds")
    assert set(found["figures"]) == {f"{kind}_{beta:g}" for kind in kinds for beta in bench.BETAS}
    assert all(value > 0 for value in found["figures"].values())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_three_actors_give_the_bits_of_one_process(small, tmp_path):
    """Eleven blocks, of which the actors start the longest first; clients leave the batch after 1 to many steps."""
    wanted = job(small, tmp_path, 1, 80, 4, (0, 0))
    wanted = bench.divided(wanted, bench.shares(np.concatenate(wanted.data.train_labels), 18, 0.3))
    wanted = replace(wanted, federation=wanted.federation.model_copy(update={"block_size": 2}))
    assert len(set(bench.steps(wanted).tolist())) > 5
    states = []
    for backend in (SerialBackend(1), ActorPool(ResourceSettings(actors=3, threads_per_actor=1))):
        with closing(backend):
            backend.load(wanted)
            server = Server(wanted, backend)
            state = server.step(server.initial_state()).state
            states.append(server.step(state).state)
    check_same_bits(*states)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_figures_of_actors(small):
    found = bench.actors([2], quiet, small, clients=20, images=160)
    assert set(found.figures) == {
        f"{kind}_{n}" for kind in ("seconds", "efficiency", "busy", "schedule", "cpu_cost") for n in (1, 2)
    }
    assert found.figures["efficiency_1"] == found.figures["cpu_cost_1"] == 1
    assert all(0 < found.figures[f"busy_{n}"] <= 1 for n in (1, 2))
    assert [row[0] for row in found.rows] == ["1", "2"]
