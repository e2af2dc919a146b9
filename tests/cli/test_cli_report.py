"""`fedpgp report` and `fedpgp compare` as a person uses them."""

from __future__ import annotations

import os

import pytest

HM = {"test_hm": [50, 60], "val_hm": [51, 61]}


def test_several_runs_are_compared(fedpgp, made_run):
    paths = [made_run(f"method.name={name}", f"seed={seed}", **HM) for name in ("coop", "fedpgp") for seed in (1, 2)]
    code, out, _ = fedpgp("report", *paths)
    assert code == 0
    assert "60.00 ± 0.00" in out
    assert "Difference to coop" in out
    assert fedpgp("report", *paths, "--baseline", "fedpgp")[1].count("Difference to fedpgp") == 1
    code, _, err = fedpgp("report", *paths, "--baseline", "fedpg")
    assert (code, "known: 'coop', 'fedpgp'" in err) == (2, True)


def test_markdown_and_csv_go_to_the_next_program(fedpgp, made_run):
    path = made_run(**HM)
    assert fedpgp("report", path, "--format", "md")[1].startswith("**Accuracy on test images")
    assert fedpgp("report", path, "--format", "csv")[1].startswith("scenario,group,split,metric,reading,mean,")


def test_a_folder_gets_the_page_and_the_figures(fedpgp, made_run, tmp_path):
    code, out, _ = fedpgp("report", made_run(**HM), "--out", tmp_path / "new" / "report")
    files = {path.name for path in (tmp_path / "new" / "report").iterdir()}
    assert (code, f"report: {tmp_path}/new/report/report.html" in out) == (0, True)
    assert {"report.html", "bars.png", "bars.svg", "convergence.png", "convergence.svg"} <= files
    fedpgp("report", made_run(**HM), "--out", tmp_path / "md", "--format", "md")
    assert (tmp_path / "md" / "report.md").read_text().startswith("**Accuracy")


def test_a_file_that_cannot_be_written_is_named_in_a_line(fedpgp, made_run, tmp_path):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    code, _, err = fedpgp("report", made_run(**HM), "--out", tmp_path / "out")
    assert (code, err) == (1, f"error: {tmp_path}/out/report.html: Is a directory\n")


def test_different_partitions_are_refused_or_marked(fedpgp, made_run):
    paths = [made_run(**HM), made_run("method.name=coop", "partition.clients=5", **HM)]
    code, out, err = fedpgp("report", *paths)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "partition.clients is 10 and 5" in err
    code, out, _ = fedpgp("report", *paths, "--allow-mismatch")
    assert (code, "† another partition than" in out) == (0, True)


@pytest.mark.parametrize("state", ["failed", "running"])
def test_a_run_that_has_not_finished_is_refused_or_marked(fedpgp, made_run, state):
    paths = [made_run(**HM), made_run("method.name=coop", state=state, **HM)]
    code, _, err = fedpgp("report", *paths)
    assert (code, f"has not finished ({state}" in err) == (2, True)
    assert f"seed 1: {state}" in fedpgp("report", *paths, "--allow-mismatch")[1]


def test_compare_shows_settings_metrics_and_marks(fedpgp, made_run):
    paths = [made_run(test_hm=[50, 60]), made_run("federation.lr=0.5", test_hm=[50, 64.5])]
    code, out, _ = fedpgp("compare", *paths)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert "federation.lr 0.001 0.5" in lines
    assert "test HM 60.00 64.50 +4.50 +2.25 +4.50" in lines
    code, _, err = fedpgp("compare", paths[0], made_run("seed=2", test_hm=[1]))
    assert (code, "have different partitions (seed 1 and seed 2)" in err) == (2, True)
    assert (
        "mark: different partitions"
        in fedpgp("compare", paths[0], made_run("seed=2", test_hm=[1]), "--allow-mismatch")[1]
    )


def test_refuses_a_folder_without_runs(fedpgp, tmp_path):
    for command in (["report", tmp_path], ["compare", tmp_path, tmp_path]):
        code, _, err = fedpgp(*command)
        assert (code, "not a run folder" in err) == (2, True)


def test_uris_are_reported_listed_and_compared_like_folders(fedpgp, made_run, tmp_path):
    root = tmp_path / "kept"
    paths = [made_run(f"method.name={name}", root=root, **HM) for name in ("coop", "fedpgp")]
    uri = root.as_uri()
    uris = [f"{uri}/runs/{path.name}" for path in paths]
    assert fedpgp("report", uri) == fedpgp("report", root)
    assert fedpgp("report", *uris) == fedpgp("report", *paths)
    assert fedpgp("report", uris[0]) == fedpgp("report", paths[0])
    assert fedpgp("compare", *uris) == fedpgp("compare", *paths)
    listed, here = fedpgp("runs", uri), fedpgp("runs", root)
    assert listed[1].split("\n", 1)[0].strip() == f"Runs under {uri}"
    assert listed[1].split("\n", 1)[1] == here[1].split("\n", 1)[1]
    assert fedpgp("report", uri, "--out", tmp_path / "page")[0] == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert f"fedpgp report {uri} --baseline coop --out report" in page
    assert os.environ["HOME"] not in page
    for command in (["report", uri + "/nowhere"], ["runs", uri + "/nowhere"], ["compare", uri + "/nowhere", uri]):
        code, out, err = fedpgp(*command)
        assert (code, out) == (2, "")
        assert err == f"error: {uri}/nowhere: no such folder, or an empty one; give a storage root, a run, or a sweep\n"
