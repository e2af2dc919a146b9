"""The driver actor: events, results and errors pass through; it stops when asked and comes back when killed."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from fedpgp.core.errors import ClientError, FedPGPError, ResourceError
from fedpgp.federation.backends import driver

pytestmark = pytest.mark.usefixtures("ray_cluster")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def count_to(number, *, restarted, emit, stop):
    for step in range(number):
        emit(step)
    return number


def misbehave(*, restarted, emit, stop):
    raise ClientError("evaluation", 1, 2, "no")


def die(*, restarted, emit, stop):
    os._exit(1)


def die_once(*, restarted, emit, stop):
    emit(f"restarted: {restarted}")
    if not restarted:
        time.sleep(0.5)
        os._exit(1)
    return "done"


def wait_for_stop(marker: Path, *, restarted, emit, stop):
    emit("started")
    marker.write_text(str(stop.wait(20)))
    return "stopped"


def test_events_and_result_pass_through():
    seen = []
    assert driver.drive(count_to, 5, name="count", emit=seen.append) == 5
    assert seen == [0, 1, 2, 3, 4]


def test_an_error_arrives_as_it_was():
    with pytest.raises(ClientError, match="client 2, round 1, evaluation: no"):
        driver.drive(misbehave, name="misbehave", emit=print)


def test_a_driver_that_is_killed_starts_again_and_says_so(caplog):
    seen = []
    assert driver.drive(die_once, name="die once", emit=seen.append) == "done"
    assert seen[-1] == "restarted: True"
    assert "starts again from its last checkpoint" in caplog.text


def test_a_driver_that_dies_for_good_is_an_error_with_advice():
    with pytest.raises(FedPGPError, match=r"driver actor died.*--resume"):
        driver.drive(die, name="die", emit=print)


def test_ctrl_c_asks_it_to_stop(tmp_path):
    def interrupt(event):
        raise KeyboardInterrupt

    assert driver.drive(wait_for_stop, tmp_path / "marker", name="wait", emit=interrupt) == "stopped"
    assert (tmp_path / "marker").read_text() == "True"


def test_a_detached_driver_is_found_followed_and_stopped_by_name_and_ends_itself(tmp_path):
    driver.start(wait_for_stop, tmp_path / "marker", name="left", detached=True)
    assert "left" in driver.names()
    threading.Timer(1.0, driver.stop, ["left"]).start()
    assert driver.follow(driver.find("left"), lambda event: None) == "stopped"
    deadline = time.monotonic() + 20
    while "left" in driver.names() and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(ResourceError, match="no driver 'left' is running here"):
        driver.find("left")
