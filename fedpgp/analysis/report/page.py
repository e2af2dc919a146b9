"""A comparison as one self-contained HTML file."""

import base64
from collections.abc import Sequence
from typing import Any

import jinja2
import yaml

from fedpgp.analysis.comparison import Comparison, Group
from fedpgp.analysis.report import comparison_tables
from fedpgp.analysis.report.figures import ReportFigure
from fedpgp.analysis.report.labels import METRIC_TITLES
from fedpgp.analysis.report.style import encoded
from fedpgp.analysis.report.tables import Table
from fedpgp.storage.run_folder import RunFolder

CLASSES = {1: "best", 2: "second"}
HIDDEN = "tracking"
"""Section that is not shown: it may name a server with its password."""


def page(
    comparison: Comparison,
    baseline: str,
    title: str,
    figures: Sequence[ReportFigure],
    notes: Sequence[str],
    commands: Sequence[str],
    first: Sequence[Table] = (),
) -> str:
    """Render the whole file; all text is escaped, figures are embedded.

    Args:
        notes: on missing figures.
        commands: those that repeat the report.
        first: tables before those of the comparison.
    """
    loader = jinja2.PackageLoader("fedpgp.analysis.report", "")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template.filters |= {"svg": _svg, "rank": lambda rank: CLASSES.get(rank, "")}
    return template.get_template("page.html").render(
        title=title,
        summary=summary(comparison, baseline),
        tables=[*first, *comparison_tables.all_tables(comparison, baseline)],
        notes=[*comparison_tables.remarks(comparison), *notes],
        figures=figures,
        differing=comparison_tables.settings(comparison),
        common=[one for one in comparison.groups[0].settings.items() if one[0] not in comparison.differing],
        environment=environment(comparison),
        commands=commands,
        recipes=[_recipe(group) for group in comparison.groups],
    )


def summary(comparison: Comparison, baseline: str) -> list[str]:
    """Summarize the comparison in sentences: the best group, and whether its lead exceeds the spread over seeds."""
    runs = sum(len(group.runs) for group in comparison.groups)
    lines = [
        f"{runs} runs in {len(comparison.groups)} groups; the runs of a group differ by seed and held-out domain only."
    ]
    metric = comparison.main
    for scenario, groups in comparison.scenarios.items() if metric is not None else ():
        means = [(found.mean, group) for group in groups if (found := group.statistic(str(metric)))]
        if len(means) > 1:
            mean, best = max(means, key=lambda one: one[0])
            where = f" on {scenario}" if scenario else ""
            lines.append(f"Highest {METRIC_TITLES[str(metric)]}{where}: {best.label} with {mean:.2f}. " + _margin(
                comparison, best, baseline, str(metric)
            ))  # fmt: skip
    return lines


def environment(comparison: Comparison) -> dict[str, str]:
    """Data, backbone, hardware and versions of the runs; all values if they differ."""
    rows: dict[str, dict[str, None]] = {}
    for run in (run for group in comparison.groups for run in group.runs.values()):
        facts: dict[str, Any] = {key: run.identity.get(key) for key in ("data", "backbone", "git_commit")}
        facts |= run.identity.get("hardware", {})
        facts |= {
            "data digest": run.identity.get("manifest_digest"),
            "weights": run.identity.get("weights_fingerprint"),
        }
        facts |= run.identity.get("versions", {})
        for key, value in facts.items():
            if value not in (None, []):
                rows.setdefault(key.replace("_", " "), {})[str(value)] = None
    return {key: ", ".join(values) for key, values in rows.items()}


def _margin(comparison: Comparison, best: Group, baseline: str, metric: str) -> str:
    """A sentence on the best group's lead over the baseline."""
    if best.label == baseline:
        return "That is the baseline."
    found = comparison.difference(best, baseline, metric)
    if found is None:
        return f"No run of {baseline} shares a seed with it."
    if found.interval is None:
        return f"Too few common seeds with {baseline} for a confidence interval."
    low, high = found.interval
    verdict = "excludes" if low > 0 else "includes"
    return (
        f"That is {found.mean:+.2f} against {baseline}, 95% confidence interval {low:+.2f} to {high:+.2f} over "
        f"{len(found.by_seed)} seeds, which {verdict} 0."
    )


def _recipe(group: Group) -> dict[str, Any]:
    """Label of a group, the commands that repeat its runs, and the settings of its first run as YAML."""
    runs = list(group.runs.values())
    settings = yaml.safe_load(RunFolder.open(runs[0].path).config_yaml)
    settings.pop(HIDDEN, None)
    return {
        "label": f"{group.label} ({group.scenario})" if group.scenario else group.label,
        "commands": [f"fedpgp run {run.path / 'config.yaml'}" for run in runs],
        "config": yaml.safe_dump(settings, sort_keys=False),
    }


def _svg(figure: Any) -> str:
    """A figure as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(encoded(figure, "svg")).decode()
