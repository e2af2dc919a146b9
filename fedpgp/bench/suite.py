"""Run every bench in a process of its own, and compare its ratios with those of the last release."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from fedpgp.bench.measurement import Measurement, Report, machine
from fedpgp.core.errors import FedPGPError, RunError
from fedpgp.core.files import write_durably

Better = Literal["larger", "smaller"]
LARGER: Better = "larger"
SMALLER: Better = "smaller"
COMPARED = ("fedpgp", "fedotp", "fedtpg", "pfedmoap")
"""Methods whose time per operation is compared with PromptFL's."""
RATIOS: Mapping[str, Mapping[str, Better]] = {
    "step": {"ratio_fp32_b32": LARGER, "ratio_fp32_b8": LARGER, "ours_peak_fraction": LARGER},
    "round": {"ratio": LARGER, "ratio_full_evaluation": LARGER},
    "clients": {"ratio_block_to_single": LARGER},
    "classes": {"megabytes_10": SMALLER, "megabytes_50": SMALLER},
    "methods": {f"seconds_per_flop_ratio_{name}": SMALLER for name in COMPARED},
    "features": {
        "extraction_fraction_of_tower": LARGER,
        "two_actor_speedup": LARGER,
        "batch_read_ratio_to_parquet": LARGER,
    },
    "dirichlet": {f"cpu_cost_over_sum_of_steps_{beta}": SMALLER for beta in ("0.1", "0.3", "1")},
    "search": {"optuna_trials": SMALLER},
    "growth": {"linearity": SMALLER},
    "faults": {"rounds_lost": SMALLER, "rows_doubled": SMALLER, "final_equal": LARGER},
    "scale": {"seconds_ratio": SMALLER, "kill_bit_equal": LARGER},
    "sweep": {"overhead_percent": SMALLER, "driver_growth_percent": SMALLER, "disk_per_trial_mb": SMALLER},
}
"""The figures of each bench that do not depend on the speed of a machine, or hardly. `overhead` has none."""
ARGUMENTS: Mapping[str, Sequence[str]] = {
    "methods": ("--method", ",".join(COMPARED)),
    "faults": ("--kills", "6"),
    "scale": ("--kill",),
}
"""Arguments of benches in the suite, where they are not the default ones."""
NOISE = 0.1
"""Share by which a figure may be worse than in the last release before it counts as a regression."""
RELEASED = "released.json"


class Record(BaseModel):
    """What one run of the suite measured."""

    version: str
    machine: dict[str, Any]
    figures: dict[str, dict[str, float]]
    """by bench and name"""


def released() -> Record:
    """The figures of the last release, which are in the package."""
    return Record.model_validate_json(files("fedpgp.bench").joinpath(RELEASED).read_text())


def read(path: Path) -> Record:
    """The figures that `write` stored; raise `RunError` if the file is not one of these."""
    try:
        return Record.model_validate_json(path.read_text())
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not figures of a suite"
        raise RunError(f"{path}: {what}; give a file that `fedpgp bench suite --save` wrote") from None


def write(path: Path, version: str, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Store the figures of a run of the suite, for a later comparison."""
    record = Record(version=version, machine=machine(), figures={name: dict(own) for name, own in figures.items()})
    write_durably(path, (json.dumps(record.model_dump(), indent=1) + "\n").encode())


def run(bench: str) -> dict[str, float]:
    """Run one bench as a command and return its figures; raise `FedPGPError` with its last line if it fails."""
    command = [sys.executable, "-m", "fedpgp", "bench", bench, "--json", *ARGUMENTS.get(bench, ())]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines() or [""]
    if done.returncode:
        raise FedPGPError(f"fedpgp bench {bench}: exit code {done.returncode}: {lines[-1]}")
    figures: dict[str, float] = json.loads(lines[-1])["figures"]
    return figures


def measure(
    benches: Sequence[str], before: Record, report: Report, run: Callable[[str], Mapping[str, float]] = run
) -> tuple[Measurement, dict[str, dict[str, float]]]:
    """Run some benches; the table has their ratios beside those of a release. Also returns all their figures.

    A bench that fails has a note instead of figures, and the others are run all the same.
    """
    found: dict[str, dict[str, float]] = {}
    rows, notes, worse = [], [], []
    for bench in benches:
        report(f"bench {bench}")
        try:
            found[bench] = dict(run(bench))
        except FedPGPError as error:
            notes.append(str(error))
            continue
        for name, better in RATIOS[bench].items():
            now, then = found[bench].get(name), before.figures.get(bench, {}).get(name)
            regressed = now is not None and then is not None and _is_worse(now, then, better)
            worse += [f"{bench}: {name}"] * regressed
            rows.append((bench, name, _shown(now), _shown(then), better, "worse" if regressed else ""))
    known = before.machine.get("cpu", "unknown")
    notes.append(f"release: fedpgp {before.version} on {known}; worse: by more than {NOISE:.0%}")
    figures = {f"{bench}/{name}": value for bench, own in found.items() for name, value in own.items()}
    figures["regressions"] = len(worse)
    headings = ("bench", "figure", "now", "release", "better", "")
    return Measurement("suite", figures, headings, rows, notes), found


def _is_worse(now: float, then: float, better: Better) -> bool:
    lost = then - now if better == "larger" else now - then
    return lost > NOISE * abs(then)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
