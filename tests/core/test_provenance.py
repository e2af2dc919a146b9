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


HERE = {
    "versions": {"torch": "2.5.1", "python": "3.11.7", "ray": "2.9"}, "git_commit": "a" * 40, "code_digest": "c1",
    "hardware": {"machine": "x86_64", "processor": "EPYC", "cores": 8, "gpus": []},
}  # fmt: skip


def changed(**parts):
    return {
        **HERE,
        **{key: {**HERE[key], **value} if isinstance(value, dict) else value for key, value in parts.items()},
    }


def test_what_can_change_the_bits_is_compared_and_nothing_else():
    assert provenance.differing([HERE, changed(versions={"ray": "3.0"}, hardware={"cores": 2})]) == {}
    other = changed(versions={"torch": "2.3.0"}, git_commit="b" * 40 + "+", hardware={"gpus": ["H200"]})
    found = provenance.differing([other, HERE, other])
    assert found == {"torch": ["2.3.0", "2.5.1"], "commit": ["b" * 12 + "+", "a" * 12], "GPU": ["H200", "none"]}
    assert provenance.as_text(found).startswith("torch (2.3.0, 2.5.1), commit (")


def test_uncommitted_changes_of_the_code_differ_and_what_is_not_recorded_does_not():
    assert provenance.differing([HERE, changed(code_digest="c2")]) == {"code": ["c1", "c2"]}
    assert provenance.differing([HERE, {}, {"versions": {}, "hardware": {}}]) == {}


def test_the_code_digest_is_of_the_python_files(tmp_path, monkeypatch):
    package = tmp_path / "fedpgp"
    (package / "core").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "core" / "provenance.py"))
    digests = set()
    for name, text in (("core/provenance.py", "a"), ("one.py", "b"), ("one.py", "c"), ("notes.txt", "d")):
        (package / name).write_text(text)
        digests.add(provenance.code_digest.__wrapped__())
    assert len(digests) == 3


def test_rounds_are_listed_by_what_made_them():
    stretches = [{"first_round": 1, **HERE}, {"first_round": 4, **changed(versions={"torch": "2.3.0"})}]
    assert provenance.by_rounds(stretches, 10) == ["rounds 1-3: torch 2.5.1", "rounds 4-10: torch 2.3.0"]
    assert provenance.by_rounds(stretches[:1], 10) == provenance.by_rounds([], 10) == []
