"""A commit is told where there is one, and only there."""

from __future__ import annotations

import subprocess

from fedpgp.core import provenance


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_working_folder_speaks_where_the_package_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "provenance.py"))
    (tmp_path / "site-packages").mkdir()
    monkeypatch.chdir(tmp_path)
    assert provenance.git_commit() is None
    monkeypatch.setenv("FEDPGP_GIT_COMMIT", "what the submitter says")
    assert provenance.git_commit() == "what the submitter says"
    git(tmp_path, "init")
    (tmp_path / "config.yaml").write_text("name: a\n")
    git(tmp_path, "add", "config.yaml")
    git(tmp_path, "commit", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit() == head
    (tmp_path / "config.yaml").write_text("name: b\n")
    assert provenance.git_commit() == f"{head}+"


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git_commit" not in provenance.describe()


def test_the_machine_and_the_versions_are_told():
    found = provenance.describe()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gib"] > 0
    assert {"python", "torch", "ray", "mlflow"} <= found["versions"].keys()
