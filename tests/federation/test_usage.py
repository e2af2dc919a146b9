"""What processes use is measured by process and added up by round; it is no part of any result."""

from __future__ import annotations

import os
import time

import pytest

from fedpgp.federation.usage import Usage, measured, of_round

MIB = 2**20


def test_workers_are_added_up_by_process_and_apart_from_the_driver():
    driver = Usage("here 1", seconds=10.0, cpu_seconds=2.0, memory=100 * MIB)
    work = [
        Usage("here 2", seconds=4.0, cpu_seconds=4.0, memory=300 * MIB),
        Usage("here 2", seconds=2.0, cpu_seconds=1.0, memory=200 * MIB),
        Usage("there 2", seconds=4.0, cpu_seconds=3.0, memory=50 * MIB, gpu_memory=70 * MIB),
    ]
    assert of_round(driver, work) == {
        "driver_cpu_utilization_percentage": 20.0,
        "driver_memory_usage_megabytes": 100.0,
        "workers_cpu_utilization_percentage": 80.0,  # 8 of 10 seconds
        "workers_memory_usage_megabytes": 350.0,
        "workers_gpu_memory_usage_megabytes": 70.0,
    }


def test_work_in_the_drivers_own_process_is_the_drivers():
    driver = Usage("here 1", seconds=10.0, cpu_seconds=9.0)
    work = [Usage("here 1", 4.0, 4.0, gpu_memory=30 * MIB), Usage("here 1", 4.0, 4.0, gpu_memory=20 * MIB)]
    assert of_round(driver, work) == {
        "driver_cpu_utilization_percentage": 90.0,
        "driver_gpu_memory_usage_megabytes": 30.0,
    }


def test_a_process_measures_its_own_processor_time_and_memory():
    with measured() as idle:
        time.sleep(0.05)
    with measured() as busy:
        sum(range(10**6))
    assert idle.process == busy.process
    assert idle.process.endswith(f" {os.getpid()}")
    assert 0 <= idle.cpu_seconds < 0.05 <= idle.seconds
    assert busy.cpu_seconds > 0
    with open("/proc/self/status", encoding="ascii") as file:
        (resident,) = [int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS")]
    assert busy.memory == pytest.approx(resident, rel=0.1)


def test_a_round_says_what_the_driver_used(server):
    result = next(server("ab").run(server("ab").initial_state()))
    assert result.row.system.keys() == {"driver_cpu_utilization_percentage", "driver_memory_usage_megabytes"}
