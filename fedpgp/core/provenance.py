"""Where numbers come from: the commit of the code, the versions of the libraries, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fedpgp.core.text import GIB

LIBRARIES = ("fedpgp", "torch", "open_clip_torch", "timm", "ray", "mlflow", "numpy", "pyarrow")
COMMIT_VARIABLE = "FEDPGP_GIT_COMMIT"


def describe() -> dict[str, Any]:
    """`versions`, `hardware` (of this node) and, if there is one, `git_commit`."""
    found = {"versions": versions(), "hardware": hardware()}
    commit = git_commit()
    return {**found, "git_commit": commit} if commit else found


def versions() -> dict[str, str]:
    """Of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs of this node; also those GPUs that Ray hides from this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "processor": named("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory_gib": round(memory / GIB, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """NVIDIA's GPUs of this node by model, as its driver tells."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [named(str(path), "Model") or "unknown" for path in found]


def git_commit() -> str | None:
    """The commit of the package if it is in a git checkout, else that of the working folder; `+`: with changes.

    Where neither is one, as in a submitted job, it is what `FEDPGP_GIT_COMMIT` says.
    """
    for folder, file in ((Path(__file__).parent, Path(__file__).name), (Path.cwd(), ".")):
        if _git(folder, "ls-files", "--error-unmatch", file) is None:
            continue
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
            return f"{commit}+" if changed else commit
    return os.environ.get(COMMIT_VARIABLE) or None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None: it cannot say, or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def named(path: str, name: str) -> str | None:
    """The value in the first line `name: value` of a file of the kernel; None: there is none."""
    return next((line.partition(":")[2].strip() for line in lines(path) if line.startswith(name)), None)


def lines(path: str) -> list[str]:
    """The lines of a file of the kernel; none if it has no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
