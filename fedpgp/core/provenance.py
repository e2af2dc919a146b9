"""Describes the environment of a run: commit of the code, versions of the libraries, and hardware."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fedpgp.core.text import GIB

LIBRARIES = ("fedpgp", "torch", "open_clip_torch", "timm", "ray", "mlflow", "numpy", "pyarrow")
COMMIT_VARIABLE = "FEDPGP_GIT_COMMIT"
KEYS = ("versions", "hardware", "git_commit", "code_digest")
"""What `describe` returns, as parts of the identity of a run."""
COMPUTE = ("python", "fedpgp", "torch", "open_clip_torch", "timm", "numpy")
"""Libraries that compute; the others of `LIBRARIES` move data and leave the bits of a result as they are."""


def describe() -> dict[str, Any]:
    """Return `versions`, `hardware` (of this node), `code_digest` and, if known, `git_commit`."""
    found = {"versions": versions(), "hardware": hardware(), "code_digest": code_digest()}
    commit = git_commit()
    return {**found, "git_commit": commit} if commit else found


@cache
def code_digest() -> str:
    """Sixteen hex digits over the Python files of the package, which also tell uncommitted changes apart."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def causes(identity: Mapping[str, Any]) -> dict[str, str]:
    """What can change the bits of a result beside settings, images and weights, by name, as far as it is recorded.

    `identity` has the keys of `describe`.
    """
    hardware, commit = identity.get("hardware", {}), identity.get("git_commit")
    found = {name: identity.get("versions", {}).get(name) for name in COMPUTE}
    found |= {"commit": commit and f"{commit[:12]}{'+' * commit.endswith('+')}", "code": identity.get("code_digest")}
    found |= {"machine": hardware.get("machine"), "processor": hardware.get("processor")}
    found |= {"GPU": (", ".join(hardware["gpus"]) or "none") if "gpus" in hardware else None}
    return {name: str(value) for name, value in found.items() if value}


def differing(identities: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Map each of `causes` that is not the same in all identities that recorded it to its values, in their order.

    `code` is left out if the commits, which say more, differ as well.
    """
    values: dict[str, dict[str, None]] = {}
    for one in map(causes, identities):
        for name, value in one.items():
            values.setdefault(name, {})[value] = None
    found = {name: list(own) for name, own in values.items() if len(own) > 1}
    if "commit" in found:
        found.pop("code", None)
    return found


def as_text(differing: Mapping[str, Sequence[str]]) -> str:
    """`torch (2.3.0, 2.5.1), processor (A, B)`."""
    return ", ".join(f"{name} ({', '.join(values)})" for name, values in differing.items())


def by_rounds(stretches: Sequence[Mapping[str, Any]], last_round: int) -> list[str]:
    """`rounds 1-3: torch 2.3.0` for each stretch of a run, with what differs among them; empty if nothing does."""
    if not (names := differing(stretches)):
        return []
    starts = [int(one["first_round"]) for one in stretches]
    ends = [*(start - 1 for start in starts[1:]), max(last_round, starts[-1])]
    found = []
    for start, end, own in zip(starts, ends, map(causes, stretches), strict=True):
        what = ", ".join(f"{name} {own.get(name, 'unknown')}" for name in names)
        found.append(f"rounds {start}-{end}: {what}")
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect results."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def software() -> dict[str, str]:
    """Return the versions that must be equal on all nodes of a run, of fedpgp with the digest of its code.

    Without their local part, such as `+cpu` or `+cu128`, which differs between machines with and without a GPU.
    """
    found = versions()
    required = {name: found[name].partition("+")[0] for name in (*COMPUTE, "ray")}
    return required | {"fedpgp": f"{required['fedpgp']} (code {code_digest()[:8]})"}


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


def gpu_driver() -> str | None:
    """Return the version of NVIDIA's driver; None: there is none, or it does not say."""
    words = " ".join(lines("/proc/driver/nvidia/version")).split()
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


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
