"""The soak names what grows and nothing else; a short one has all its figures; kills lose and double nothing."""

from __future__ import annotations

import json
import mmap
import os
import threading

import pytest

from fedpgp.bench import reliability
from fedpgp.bench.measurement import usage


def samples(**series):
    return [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]


def constant(count=10):
    return {name: [100.0] * count for name in reliability.JUDGED} | {"cycle_seconds": [9.0] * count}


def growth_of(values):
    return reliability.trend(values)[1]


def test_growth_is_that_of_the_straight_line_after_the_warm_up():
    """Of ten values three are warm-up; the seven others rise by 1 each, from 98 to 104: 6 of their mean 101."""
    mean, growth = reliability.trend([5, 500, 50, 98, 99, 100, 101, 102, 103, 104])
    assert (mean, growth) == (101, pytest.approx(100 * 6 / 101))
    assert growth > reliability.TOLERANCE
    assert growth_of([5, 50, 500, *[100] * 7]) <= reliability.TOLERANCE
    assert growth_of([300, 200, 104, 103, 102, 101, 100, 99]) <= reliability.TOLERANCE  # what shrinks does not grow


def test_a_small_change_of_a_value_near_zero_is_no_growth():
    assert growth_of([0.0] * 4 + [0.01] * 6) <= reliability.TOLERANCE
    assert growth_of([0.0] * 10) == 0


def test_what_grows_is_named_and_time_is_not_judged():
    flat = reliability.evaluate(samples(**constant()), "10 cycles")
    assert flat.figures["flat"] == 1
    assert flat.notes[0].startswith("flat: nothing grows by more than 5%")
    slower = constant() | {"cycle_seconds": [float(value) for value in range(9, 19)]}
    assert reliability.evaluate(samples(**slower), "").figures["flat"] == 1
    leaking = constant() | {"handles": [100.0 + value for value in range(10)]}
    found = reliability.evaluate(samples(**leaking), "")
    assert found.figures["flat"] == 0
    assert found.notes[0].startswith("grows: open files and sockets by more than 5%")
    assert {row[0] for row in found.rows} == {*reliability.JUDGED.values(), reliability.INFORMATIVE["cycle_seconds"]}


def test_usage_sees_a_file_a_thread_and_memory_of_this_process(tmp_path):
    before, done = usage([os.getpid()]), threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    ballast = mmap.mmap(-1, 1 << 26)  # not from the heap, which may have as much to spare
    ballast.write(b"x" * len(ballast))
    with (tmp_path / "open").open("w"):
        after = usage([os.getpid()])
    done.set()
    thread.join()
    assert after["handles"] == before["handles"] + 1
    assert after["threads"] == before["threads"] + 1
    grown = after["memory_mb"] - before["memory_mb"]
    assert grown > 0.8 * len(ballast) / reliability.MB  # other threads take more besides
    gone = 2**22 + 1  # above the largest process id
    assert usage([os.getpid(), gone])["processes"] == 1


def test_size_is_that_of_all_files_below(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"12345")
    (tmp_path / "a" / "all").symlink_to(tmp_path)  # not followed
    assert reliability.folder_size(tmp_path) == 5


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_short_soak_has_its_figures(monkeypatch):
    """Two cycles of a run of two rounds and a sweep of one trial."""
    lines = []
    for name, value in {"MIN_CYCLES": 2, "REST": 0.2, "ROUNDS": 2, "TRIALS": 1}.items():
        monkeypatch.setattr(reliability, name, value)
    found = json.loads(reliability.soak(0, lines.append).as_json())
    assert found["bench"] == "soak"
    assert {f"{name}_growth_percent" for name in reliability.JUDGED} < set(found["figures"])
    assert found["figures"]["cycles"] == reliability.MIN_CYCLES == len(lines)
    assert found["figures"]["written_mb"] > 0


@pytest.mark.slow
def test_faults_lose_and_double_nothing(monkeypatch):
    """A seed that draws one kill of each kind, in this order: actor, driver, run."""
    monkeypatch.setattr(reliability, "derive_seed", lambda *path: 3134)
    outcome = reliability.faults(3, lambda text: None)
    assert outcome.figures == {"kills": 3, "rounds_lost": 0, "rows_doubled": 0, "final_equal": 1}
