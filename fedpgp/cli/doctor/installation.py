"""Check that Python and the packages are installed, in the required ranges, and in versions that were tested."""

import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from fedpgp.cli.doctor.findings import Finding, ok, problem, warning

PACKAGE = "fedpgp"
TESTED = {
    "python": "3.11",
    "mlflow": "3.17",
    "numpy": "2.4",
    "open_clip_torch": "3.3",
    "pyarrow": "25.0",
    "ray": "2.60",
    "scipy": "1.17",
    "timm": "1.0",
    "torch": "2.14",
    "torchvision": "0.29",
}
"""The versions with which the tests last passed. Others in the required range are untested."""


def examine() -> Iterator[Finding]:
    """Check Python, then each package; packages without a finding are counted in one line."""
    try:
        about, texts = importlib.metadata.metadata(PACKAGE), importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield problem("packages", f"{PACKAGE} is not installed, only its files are here", "pip install -e .")
        return
    version, supported = platform.python_version(), about["Requires-Python"]
    if SpecifierSet(supported or "").contains(version, prereleases=True):
        yield _seen("python", version) or ok("python", version)
    else:
        advice = "make a new environment with another one"
        yield problem("python", f"{version}, but {PACKAGE} needs {supported}", advice)
    required = map(Requirement, texts)  # those of extras and of other platforms have markers that are false
    wanted = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = [finding for finding in map(_package, wanted) if finding is not None]
    yield from found
    yield ok("packages", f"{len(wanted) - len(found)} of {len(wanted)} as fedpgp {about['Version']} wants them")


def _package(requirement: Requirement) -> Finding | None:
    """A problem or warning about a package, if any."""
    name, label = requirement.name, f"package {requirement.name}"
    repair = f'pip install "{name}{requirement.specifier}"'
    try:
        version = importlib.metadata.version(name)
        fits = requirement.specifier.contains(Version(version), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return problem(label, "is not installed", repair)
    except InvalidVersion:
        return problem(label, f"has the version {version!r}, which is none", repair)
    if not fits:
        return problem(label, f"{version}, but {PACKAGE} needs {requirement.specifier}", repair)
    return _seen(name, version)


def _seen(name: str, version: str) -> Finding | None:
    """A warning if no version with the same major and minor number was tested."""
    tested = TESTED.get(name)
    if tested is None or Version(version).release[:2] == Version(tested).release:
        return None
    label = name if name == "python" else f"package {name}"
    return warning(label, f"{version} is untested, {tested} is what the tests have seen", "run `make test` with it")
