"""The checks of a GPU, on the CPU at a tiny size: what is right passes, and what is not is named."""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from math import inf, nan
from types import SimpleNamespace

import pytest
import ray
import torch
from typer.testing import CliRunner

from fedpgp.bench import gpu, gpu_limits, gpu_parity, gpu_speed, measurement
from fedpgp.bench.gpu_parity import PRECISIONS, Figure, Precision
from fedpgp.bench.gpu_speed import Setting
from fedpgp.bench.measurement import Measurement
from fedpgp.bench.workload import CPU
from fedpgp.cli import bench
from fedpgp.core import provenance
from fedpgp.core.errors import FedPGPError, ResourceError
from fedpgp.federation.backends.base import SerialBackend
from fedpgp.federation.state import State

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
FP32, BF16, _ = PRECISIONS


def size(workload):
    settings = (
        Setting("few", workload, clients=4, shots=2, participation=1.0, batch=4, epochs=1, tests=(20, 3)),
        Setting("many", workload, clients=10, shots=4, participation=0.2, batch=4, epochs=1, tests=(0, 0)),
    )
    return gpu.Size(settings, squares=(16,), tokens=12, times=1, photos=8)


def passed(figures):
    return {one.key: one.passed for one in figures}


@pytest.mark.parametrize(
    ("value", "most", "least", "expected"),
    [(0.1, 0.1, 0, True), (0.2, 0.1, 0, False), (0.2, 0.25, 0.22, False), (5.0, inf, 0, True), (nan, inf, 0, False)],
)
def test_a_figure_passes_in_its_range(value, most, least, expected):
    assert Figure("x", value, most, least).passed is expected


def test_ranges_in_words():
    assert [Figure("x", 0, *limits).range for limits in ((), (0.25,), (0.25, 0.225))] == [
        "", "at most 0.25", "0.225 to 0.25",
    ]  # fmt: skip


def test_logits_and_gradients_in_float32_and_bfloat16(workload):
    found = {one.key: one for one in gpu_parity.step_parity(workload, CPU, [FP32, BF16])}
    assert all(one.passed for one in found.values())
    assert found["logit_error_float32"].value == found["gradient_error_float32"].value == 0
    assert 1e-4 < found["logit_error_bfloat16"].value < found["gradient_error_bfloat16"].value


def test_wrong_logits_and_gradients_are_named(workload, monkeypatch):
    """As if a device multiplied all weights of the text tower by 1.001."""
    outputs = gpu_parity.outputs
    calls = []

    def perturbed(own, dtype, device):
        calls.append(dtype)
        tower = own.text.tower
        if len(calls) > 1:
            own = replace(own)
            own.__dict__["text"] = replace(workload.text, tower=replace(tower, tokens=tower.tokens * 1.001))
        return outputs(own, dtype, device)

    monkeypatch.setattr(gpu_parity, "outputs", perturbed)
    assert passed(gpu_parity.step_parity(workload, CPU, [FP32])) == {
        "logit_error_float32": False,
        "gradient_error_float32": False,
    }


def test_a_trajectory_is_compared_in_relation_to_its_length(workload):
    """In bfloat16 it differs by more than float32 may; a difference of 1 would be no training at all."""
    strict = replace(BF16, trajectory=FP32.trajectory)
    with gpu_parity.small_federation(workload) as wanted:
        same, rounded, too_far = gpu_parity.trajectory_parity(wanted, 1, 0, [FP32, BF16, strict])
    assert (same.value, same.passed, rounded.passed, too_far.passed) == (0, True, True, False)
    assert 0.05 < rounded.value == too_far.value < 0.7


def test_other_bits_are_counted():
    one = State(1, {"ctx": torch.ones(2)}, {"U": torch.zeros(3), "V": torch.zeros(3)})
    other = State(
        1, {"ctx": torch.tensor([1.0, 1.0 + 2**-23])}, {"U": torch.tensor([0.0, -0.0, 0.0]), "V": torch.zeros(3)}
    )
    assert (gpu_parity.different(one, one), gpu_parity.different(other, one)) == (0, 2)


@pytest.mark.parametrize(("seed", "equal"), [(1, True), (2, False)])
def test_actors_with_other_bits_are_named(seed, equal, workload, monkeypatch):
    """Processes in place of actors that train with a seed of their own."""
    monkeypatch.setattr(gpu_parity, "ActorPool", lambda resources: SerialBackend(resources.threads))
    with gpu_parity.small_federation(workload) as wanted:
        expected = gpu_parity.serially(replace(wanted, seed=seed), 1, 0)
        monkeypatch.setattr(gpu_parity, "serially", lambda *_: expected)
        assert passed(gpu_parity.equal_bits(wanted, 0)) == {
            "different_parameters_1_actors": equal, "different_parameters_4_actors": equal,
        }  # fmt: skip


def test_steps_that_wait_are_named(monkeypatch):
    """A round of n steps waits 7 times, and 2 n times more."""
    monkeypatch.setattr(gpu_limits, "waits", lambda run: 7 + 2 * run.func.__self__.job.federation.local_steps)
    found = {one.key: one for one in gpu_limits.waiting(["promptfl", "fedpha"])}
    assert [(one.value, one.passed) for one in found.values()] == [(2.0, False), (2.0, True)]
    assert list(found) == ["waits_per_step_promptfl", "waits_per_step_fedpha"]


def test_waits_are_warnings_of_torch(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for text in ("called a synchronizing CUDA operation (x)", "called a synchronizing CUDA operation (x)", "other"):
            warnings.warn(text, stacklevel=1)

    assert (gpu_limits.waits(run), modes) == (2, ["warn", "default"])


def test_all_methods_that_train_are_watched():
    assert len(gpu_limits.names()) == 17
    assert set(gpu_limits.names()) >= gpu_limits.MAY_WAIT | {"fedpgp", "fedmgp"}


class Limited:
    """A job in place of `Filling`, without a GPU."""

    def __init__(self, part, error):
        self.part, self.error = part, error

    def build(self, device):
        return self

    def fill(self, beyond):
        if beyond and self.error is not None:
            raise self.error
        return self.part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "error", "expected"),
    [
        (
            0.24,
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has 1 GiB. More"),
            [1, 1],
        ),
        (0.9, None, [0, 0]),
    ],
)
def test_memory_beyond_the_share_or_without_advice_is_named(part, error, expected, ray_cluster):
    found = passed(gpu_limits.memory(Limited(part, error), 0))
    assert found == {"memory_of_a_quarter": expected[0], "out_of_memory_without_advice": expected[1]}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_one_line():
    outcome = CliRunner().invoke(bench.app, ["gpu", "--json"])
    assert isinstance(outcome.exception, ResourceError)
    assert outcome.exception.exit_code == 2
    assert str(outcome.exception).startswith("bench gpu needs an NVIDIA GPU, and torch can use none here (")
    assert "\n" not in str(outcome.exception)


@pytest.mark.slow
def test_figures(workload, ray_cluster):
    outcome = gpu.measure(lambda what: None, CPU, size(workload))
    assert outcome.failures == []
    figures = json.loads(outcome.as_json())["figures"]
    precisions, dtypes, settings = ("float32", "bfloat16", "float16"), ("float32", "bfloat16"), ("few", "many")
    rates = ("steps_per_second", "step_peak_fraction", "operators_per_step", "rounds_per_second", "round_peak_fraction")
    assert set(figures) == {
        *(f"{what}_error_{name}" for what in ("logit", "gradient", "trajectory") for name in precisions),
        *(f"different_parameters_{count}_actors" for count in (1, 4)),
        *(f"{what}_{dtype}" for what in ("peak_tflops", "fused_attention_speedup") for dtype in dtypes),
        *(f"{rate}_{setting}_{dtype}" for rate in rates for setting in settings for dtype in dtypes),
        *(f"extraction_images_per_second_{count}_actors" for count in (1, 4)),
        "tower_images_per_second",
    }
    assert all(value > 0 for key, value in figures.items() if "error" not in key and "different" not in key)
    assert [row[-1] for row in outcome.rows] == ["passed"] * 11 + [""] * (len(figures) - 11)


def test_an_error_ends_one_stage_and_is_named(workload, monkeypatch):
    monkeypatch.setattr(gpu.ray_cluster, "connected", lambda resources: nullcontext())

    def stages(device, size):
        yield "broken", (Figure("a", 1 / divisor) for divisor in (1, 0))
        yield "outside", iter([Figure("b", 2.0, most=1.0)])

    monkeypatch.setattr(gpu, "_stages", stages)
    outcome = gpu.measure(lambda what: None, CPU, size(workload))
    assert outcome.figures == {"a": 1.0, "b": 2.0}
    assert outcome.failures == ["broken: division by zero", "b is 2, not at most 1"]


def test_a_round_of_a_tenth_trains_as_many_clients(workload, tmp_path):
    _, many = size(workload).settings
    wanted = many.job(tmp_path, torch.bfloat16)
    assert (many.participants, wanted.federation.block_size, wanted.dtype) == (2, 2, torch.bfloat16)
    assert [len(rows) for rows in wanted.data.train_rows] == [8] * 10
    assert wanted.data.evaluation_sets == ()


def test_the_settings_of_the_poster(monkeypatch, workload):
    monkeypatch.setattr(gpu, "vit_b_16", lambda: workload)
    first, second = gpu.full().settings
    assert (first.clients, first.participants, second.clients, second.participants) == (10, 10, 100, 10)
    assert (len(second.workload.base), second.workload.novel) == (100, ("ibis",))
    assert Precision(torch.float16, 1, 1, 1).name == gpu_speed.name_of(torch.float16) == "float16"


def test_time_of_a_run_is_a_mean_after_a_first_run(monkeypatch):
    runs, clock = [], iter([10.0, 16.0])
    monkeypatch.setattr(gpu_speed.time, "perf_counter", lambda: next(clock))
    assert (gpu_speed.timed(lambda: runs.append(1), 3, CPU), len(runs)) == (2.0, 4)


def test_a_failed_check_is_an_error_after_table_and_json(capsys):
    found = Measurement("gpu", {"a": 2.0}, ("figure",), [["a"]], failures=["a is 2, not at most 1", "b: broken"])
    with pytest.raises(FedPGPError) as error:
        bench._show(found, True)
    assert (str(error.value), error.value.exit_code) == ("bench gpu: a is 2, not at most 1; b: broken", 1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"] == {"a": 2.0}


def test_the_machine_of_a_gpu_has_its_name_and_its_versions(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=150 * 2**30)
    kernel = ["NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build", "GCC version:  12.2"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(provenance, "lines", lambda path: kernel if "driver/nvidia/version" in path else [])
    found = measurement.machine()
    assert {key: found[key] for key in ("gpu", "gpu_memory_gb", "driver", "cuda")} == {
        "gpu": "NVIDIA H200", "gpu_memory_gb": 150.0, "driver": "570.86.15", "cuda": torch.version.cuda,
    }  # fmt: skip
