"""The driver actor: passes events, results and errors on, stops on request and restarts when killed."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
import ray

from fedpgp.core.callbacks import Event, EventStream, RunCallback
from fedpgp.core.errors import ClientError, FedPGPError, ResourceError
from fedpgp.federation.backends import driver, ray_cluster

pytestmark = pytest.mark.usefixtures("ray_cluster")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def count_to(number, *, restarted, callback, stop):
    for step in range(number):
        callback.on_extract(step, number, None)
    return number


def misbehave(*, restarted, callback, stop):
    raise ClientError("evaluation", 1, 2, "no")


def die(*, restarted, callback, stop):
    os._exit(1)


def die_once(*, restarted, callback, stop):
    callback.on_message(f"restarted: {restarted}")
    if not restarted:
        time.sleep(0.5)
        os._exit(1)
    return "done"


def wait_for_stop(marker: Path, *, restarted, callback, stop):
    callback.on_message("started")
    marker.write_text(str(stop.wait(20)))
    return "stopped"


def test_the_socket_path_whose_length_is_checked_is_that_of_ray():
    socket = ray._private.worker._global_node.plasma_store_socket_name
    assert len(socket) == len(str(ray_cluster.temporary_folder()[1] / ray_cluster.SOCKET.format(pid=os.getpid())))


def test_events_and_result_pass_through():
    seen = []
    assert driver.drive(count_to, 5, name="count", callback=EventStream(seen.append)) == 5
    assert seen == [Event("on_extract", (step, 5, None)) for step in range(5)]


def test_an_error_arrives_unchanged():
    with pytest.raises(ClientError, match="client 2, round 1, evaluation: no"):
        driver.drive(misbehave, name="misbehave", callback=RunCallback())


def test_a_killed_driver_restarts_with_a_warning(caplog):
    seen = []
    assert driver.drive(die_once, name="die once", callback=EventStream(seen.append)) == "done"
    assert seen[-1] == Event("on_message", ("restarted: True", False))
    assert "restarts from its last checkpoint" in caplog.text


@pytest.mark.slow
def test_a_driver_that_keeps_dying_is_an_error_with_advice():
    with pytest.raises(FedPGPError, match=r"driver actor died.*--resume"):
        driver.drive(die, name="die", callback=RunCallback())


def test_ctrl_c_asks_it_to_stop(tmp_path):
    def interrupt(event):
        raise KeyboardInterrupt

    assert driver.drive(wait_for_stop, tmp_path / "marker", name="wait", callback=EventStream(interrupt)) == "stopped"
    assert (tmp_path / "marker").read_text() == "True"


def test_a_detached_driver_is_found_followed_and_stopped_by_name_and_ends_itself(tmp_path):
    driver.start(wait_for_stop, tmp_path / "marker", name="detached", detached=True)
    assert "detached" in driver.names()
    threading.Timer(1.0, driver.stop, ["detached"]).start()
    assert driver.follow(driver.find("detached"), RunCallback()) == "stopped"
    deadline = time.monotonic() + 20
    while "detached" in driver.names() and time.monotonic() < deadline:
        time.sleep(0.2)
    with pytest.raises(ResourceError, match="no driver 'detached' is running here"):
        driver.find("detached")
