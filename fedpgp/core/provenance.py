"""Describes the environment of a run: commit of the code, versions of the libraries, and hardware."""

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
    """Return `versions`, `hardware` (of this node) and, if known, `git_commit`."""
    found = {"versions": versions(), "hardware": hardware()}
    commit = git_commit()
    return {**found, "git_commit": commit} if commit else found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def hardware() -> dict[str, Any]:
    """Return processor, cores, memory and GPUs of this node, including GPUs that Ray hides from this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "processor": named("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory_gib": round(memory / GIB, 1),
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """List the models of this node's NVIDIA GPUs, as reported by the driver."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [named(str(path), "Model") or "unknown" for path in found]


def git_commit() -> str | None:
    """Return the commit of the package's git checkout, else that of the working folder; `+`: with changes.

    Without a checkout, as in a submitted job, it is the value of `FEDPGP_GIT_COMMIT`.
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
    """Return the output of git; None if it fails or is missing."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def named(path: str, name: str) -> str | None:
    """Return the value of the first line `name: value` of a kernel file, None if it is missing."""
    return next((line.partition(":")[2].strip() for line in lines(path) if line.startswith(name)), None)


def lines(path: str) -> list[str]:
    """Return the lines of a kernel file, none if it is missing."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
