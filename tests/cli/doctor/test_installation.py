"""Python and the packages, as installed and as asked for."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from fedpgp.cli.doctor import command, installation
from fedpgp.cli.doctor.findings import State, problem, verdict, warning

UNTESTED = "run `make test` with it"


def test_this_installation_fits_and_its_versions_are_those_that_were_tested_or_said_not_to_be():
    found = {one.name: one for one in installation.examine()}
    assert verdict([*found.values()])[0] < State.problem
    assert re.search(r"\d+ of \d+ as fedpgp \S+ wants them", found["packages"].what)


def test_tested_versions_are_of_packages_that_are_required_and_in_their_ranges():
    required = {one.name: one for one in map(Requirement, importlib.metadata.requires("fedpgp") or [])}
    tested = {name: version for name, version in installation.TESTED.items() if name != "python"}
    assert tested.keys() <= required.keys()
    assert [name for name, version in tested.items() if not required[name].specifier.contains(Version(version))] == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2.14.9+cpu", None),
        ("2.15.0", warning("package torch", "2.15.0 is untested, 2.14 is what the tests have seen", UNTESTED)),
        ("2.3.1", problem("package torch", "2.3.1, but fedpgp needs >=2.4", 'pip install "torch>=2.4"')),
        ("main", problem("package torch", "has the version 'main', which is none", 'pip install "torch>=2.4"')),
        (None, problem("package torch", "is not installed", 'pip install "torch>=2.4"')),
    ],
)  # fmt: skip
def test_a_package_out_of_range_is_a_problem_and_an_untested_one_a_warning(monkeypatch, version, expected):
    known = importlib.metadata.version

    def pretend(name):
        if name == "torch" and version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version if name == "torch" else known(name)

    monkeypatch.setattr(importlib.metadata, "version", pretend)
    found = [one for one in installation.examine() if one.name == "package torch"]
    assert found == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    ("version", "state"), [("3.10.2", State.problem), ("3.11.9", State.ok), ("3.19.0", State.warning)]
)
def test_python_is_held_against_what_the_package_asks_for(monkeypatch, version, state):
    monkeypatch.setattr("platform.python_version", lambda: version)
    (found,) = [one for one in installation.examine() if one.name == "python"]
    assert found.state is state
    assert version in found.what


def test_an_installation_without_its_packages_is_told_and_ends_there(monkeypatch):
    def broken(given, overrides):
        raise ImportError("no module named torch")
        yield

    monkeypatch.setattr(command, "_beyond_the_packages", broken)
    last = command.examine()[-1]
    assert (last.name, last.state) == ("packages", State.problem)
    assert "no module named torch" in last.what
