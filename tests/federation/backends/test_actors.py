"""The Ray backend: placement, order, lost and late actors, errors."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import OutOfMemoryError, RpcError

from fedpgp.config import ResourceSettings
from fedpgp.core.errors import ClientError, FedPGPError, Interrupted, ResourceError
from fedpgp.federation.backends import actors
from fedpgp.federation.backends.actors import ATTEMPTS, ActorPool, _longest

pytestmark = pytest.mark.usefixtures("ray_cluster")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    def __init__(self, factor):
        self.factor = factor

    def late_first(self, call):
        """The first call takes longest."""
        time.sleep(0.3 if call == 0 else 0)
        return call * self.factor, os.getpid()

    def die_once(self, call):
        number, marker = call
        if number == 1 and not marker.exists():
            marker.touch()
            os._exit(1)
        return number * self.factor

    def die(self, call):
        os._exit(1)

    def hang_once(self, call):
        number, marker = call
        if number == 1 and not marker.exists():
            marker.touch()
            time.sleep(60)
        return number * self.factor

    def sleep(self, call):
        time.sleep(60)

    def scaled_sum(self, call, common):
        return call * self.factor * float(common["x"].sum())

    def fill_gpu(self, call):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB. Process 7 has"
        )

    def started(self, call):
        """When the call started, on the clock of this machine."""
        start = time.monotonic()
        time.sleep(0.3)
        return start

    def fail(self, call):
        raise ClientError("local training", 3, call, "loss is nan")


@dataclass(frozen=True)
class Job:
    factor: int = 10

    def build(self, device):
        return Worker(self.factor)


@pytest.fixture(scope="module")
def two_actors():
    pool = ActorPool(ResourceSettings(actors=2))
    yield pool
    pool.close()


@pytest.fixture
def pool(two_actors):
    two_actors.load(Job())
    return two_actors


def test_two_actors_share_each_gpu(caplog):
    pool = ActorPool(ResourceSettings(actors=4, gpus_per_actor=0.5))
    locations = [actor.location for actor in pool._idle]
    pool.close()
    assert Counter(tuple(location["gpu_ids"]) for location in locations) == {(0,): 2, (1,): 2}
    assert [record.message for record in caplog.records].count(
        "resources.gpus_per_actor is set, but torch sees no GPU there: running on the CPU"
    ) == 1  # fmt: skip


def test_a_full_gpu_of_an_actor_is_one_line_with_advice(pool):
    with pytest.raises(FedPGPError) as error:
        list(pool.map("fill_gpu", [0]))
    assert str(error.value).startswith(
        "fill_gpu: the memory of the GPU is full (Tried to allocate 2.00 GiB; GPU 0 has 1.00 GiB); lower federation."
    )
    assert "\n" not in str(error.value)


def test_results_come_in_the_order_of_the_calls(pool):
    results = list(pool.map("late_first", range(5)))
    assert [value for value, _ in results] == [0, 10, 20, 30, 40]
    assert len({process for _, process in results}) == 2


def test_the_calls_with_the_most_work_start_first(pool):
    first, longest, second, last = pool.map("started", range(4), work=[2, 9, 4, 1])
    assert max(longest, second) < min(first, last)


def test_only_the_next_calls_are_compared_so_that_few_results_wait():
    """Of many calls in rising order the last of the first four, not of all; of a call that is far off, that one."""
    assert _longest(range(100), range(100), end=4) == 3
    assert _longest([50, 60], range(100), end=4) == 50
    assert _longest(range(3), [], end=4) == 0  # without their work, calls keep their order


@pytest.mark.parametrize("size", [2, 50_000])
def test_common_arrays_reach_every_call(pool, size):
    """Small arrays are sent with each call, large ones through the object store."""
    common = {"x": np.full(size, 0.5)}
    assert list(pool.map("scaled_sum", [1, 2, 3], common)) == [5 * size, 10 * size, 15 * size]


def test_a_new_job_replaces_the_old(pool):
    pool.load(Job(factor=7))
    assert [value for value, _ in pool.map("late_first", [1, 2])] == [7, 14]


def test_a_lost_actor_costs_only_its_block(pool, tmp_path, caplog):
    assert list(pool.map("die_once", [(number, tmp_path / "died") for number in range(4)])) == [0, 10, 20, 30]
    assert re.search(r"die_once block 2 of 4 on node \w+ at [\d.]+: .*; repeating it on another actor", caplog.text)
    assert [value for value, _ in pool.map("late_first", range(4))] == [0, 10, 20, 30]


@pytest.mark.parametrize(("code", "error"), [(actors.CANCELLED, Interrupted), (14, RpcError)], ids=["ended", "other"])
def test_the_end_of_ray_interrupts_the_run(monkeypatch, code, error):
    """As when all nodes are shut down: an actor is lost, and the server that would start another has ended."""

    class Ended:
        def options(self, **options):
            return self

        def remote(self, *args):
            raise RpcError("RPC error", code)

    pool = ActorPool(ResourceSettings(actors=1, cpus_per_actor=0.1))
    pool.load(Job())
    monkeypatch.setattr(ray, "remote", lambda kind: Ended())
    with pytest.raises(error, match="Ray was shut down" if error is Interrupted else "RPC error"):
        list(pool.map("die", [0]))
    pool.close()


def test_a_block_that_kills_every_actor_ends_the_round(pool):
    with pytest.raises(FedPGPError, match=f"die block 1 of 1 on node .* gave up after {ATTEMPTS} attempts"):
        list(pool.map("die", [0]))


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_a_worker_killed_for_memory_is_replaced_with_advice(pool, tmp_path, monkeypatch, caplog, kills):
    """Ray kills workers of a node that runs out of memory, and raises OutOfMemoryError."""
    get, remaining = actors.ray.get, iter(range(kills))

    def killed(*arguments, **options):
        if next(remaining, None) is None:
            return get(*arguments, **options)
        raise OutOfMemoryError("Task was killed due to the node running low on memory.\nMore.")

    message = "running low on memory.*; lower resources.actors or federation.block_size"
    monkeypatch.setattr(actors.ray, "get", killed)
    if kills == 1:
        assert list(pool.map("hang_once", [(number, tmp_path) for number in (1, 2, 3)])) == [10, 20, 30]
        assert re.search(message, caplog.text)
    else:
        with pytest.raises(FedPGPError, match=message):
            list(pool.map("hang_once", [(1, tmp_path)]))


def test_a_late_block_is_sent_to_another_actor(tmp_path, caplog):
    pool = ActorPool(ResourceSettings(actors=2, block_timeout=2))
    pool.load(Job())
    start = time.monotonic()
    assert list(pool.map("hang_once", [(number, tmp_path / "hung") for number in range(3)])) == [0, 10, 20]
    pool.close()
    assert time.monotonic() - start < 30
    assert "no answer within 2 s; repeating it on another actor" in caplog.text


def test_a_request_to_stop_interrupts_running_calls():
    stop = threading.Event()
    pool = ActorPool(ResourceSettings(actors=1), stop)
    pool.load(Job())
    threading.Timer(0.5, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        list(pool.map("sleep", [0, 1]))
    assert time.monotonic() - start < 5
    pool.close()


def test_an_error_keeps_its_client(pool):
    with pytest.raises(ClientError) as caught:
        list(pool.map("fail", [5]))
    assert (caught.value.client, caught.value.round, str(caught.value)) == (
        5,
        3,
        "client 5, round 3, local training: loss is nan",
    )


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"actors": 9}, "need 9 CPU.*has 4 CPU.*short of CPU, 4 fit"),
        ({"actors": 4, "gpus_per_actor": 0.6}, "short of GPU, 2 fit"),
        ({"actors": 3, "gpus_per_actor": 0.6}, "do not pack"),
    ],
)
def test_a_request_that_does_not_fit_is_rejected_at_once(resources, message):
    start = time.monotonic()
    with pytest.raises(ResourceError, match=message):
        ActorPool(ResourceSettings(**resources))
    assert time.monotonic() - start < 5


def test_an_actor_that_is_not_ready_in_time_is_an_error(pool):
    @ray.remote(num_cpus=2)  # `two_actors` uses the other two
    class Occupant:
        def ready(self):
            return True

    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    try:
        with pytest.raises(ResourceError, match="2 of 2 actors not ready within 1 s"):
            ActorPool(ResourceSettings(actors=2, ready_timeout=1))
    finally:
        ray.kill(occupant)
