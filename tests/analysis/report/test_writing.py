"""The HTML report is complete and self-contained, and escapes all names."""

from __future__ import annotations

import re

import pytest

from fedpgp.analysis.loading import Entry, compare
from fedpgp.analysis.report import writing
from fedpgp.analysis.report.comparison_figures import bars
from fedpgp.analysis.report.figures import ReportFigure
from fedpgp.storage.run_folder import RunFolder


@pytest.fixture
def compared(made_run):
    entries = []
    for seed in (1, 2, 3):
        password = "tracking.uri=http://me:secret@host"
        entries.append(
            Entry(made_run(f"seed={seed}", "method.name=coop", password, test_hm=[60 + seed]), "<b>coop</b>")
        )
        entries.append(Entry(made_run(f"seed={seed}", test_hm=[70 + seed]), "fedpgp"))
    return compare(entries)


def rendered(compared, **changes):
    figures = [ReportFigure("bars", "<i>By metric</i>", "", bars(compared.groups, ["hm"]))]
    given = {"figures": figures, "notes": ["not drawn: <x>"], "commands": ["fedpgp report 'a & b'"], **changes}
    return writing.page(compared, compared.labels[0], "t <script>alert(1)</script>", **given)


def test_all_text_is_escaped(compared):
    text = rendered(compared)
    assert "<script" not in text
    assert "<b>coop" not in text
    assert "&lt;b&gt;coop&lt;/b&gt;" in text
    assert "<i>By metric" not in text
    assert "fedpgp report &#39;a &amp; b&#39;" in text


def test_nothing_is_fetched_and_no_password_is_shown(compared):
    text = rendered(compared)
    assert re.findall(r'(?:src|href)="(?!#|data:)', text) == []
    assert "url(" not in text
    assert "secret" not in text
    assert text.count("data:image/svg+xml;base64,") == 1


def test_it_has_every_part(compared):
    text = rendered(compared)
    for part in ("results", "notes", "figures", "settings", "environment", "repeat"):
        assert f'<section id="{part}">' in text
    assert '<td class="number best">72.00 ± 1.00</td>' in text
    assert '<td class="number second">62.00 ± 1.00</td>' in text
    runs = [run.path for group in compared.groups for run in group.runs.values()]
    assert all(f"fedpgp run {path}/config.yaml" in text for path in runs)


def test_the_summary_names_the_best_group_and_its_lead(compared):
    assert writing.summary(compared, "<b>coop</b>")[1] == (
        "Highest HM: fedpgp with 72.00. That is +10.00 against <b>coop</b>, 95% confidence interval +10.00 to +10.00 "
        "over 3 seeds, which excludes 0."
    )
    assert writing.summary(compared, "fedpgp")[1].endswith("That is the baseline.")


def test_the_environment_lists_all_versions(made_run):
    paths = [made_run(test_hm=[1]), made_run("method.name=coop", version="2", test_hm=[1])]
    assert writing.environment(compare([Entry(path) for path in paths]))["fedpgp"] == "1, 2"


def test_the_environment_says_which_rounds_were_made_with_which_versions(made_run):
    path = made_run(test_hm=[1, 2, 3])
    RunFolder.open(path).continue_with(2, {"versions": {"fedpgp": "2"}, "hardware": {"machine": "arm64"}})
    found = writing.environment(compare([Entry(path)]))
    assert (found["fedpgp"], found["machine"]) == ("1, 2", "arm64")
    assert found[path.name] == "rounds 1-1: fedpgp 1; rounds 2-3: fedpgp 2"
