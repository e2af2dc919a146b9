"""Write a comparison as an HTML, Markdown or CSV report, with its figures."""

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2

from fedpgp.analysis import loading
from fedpgp.analysis.comparison import METRIC_TITLES, Comparison, Group
from fedpgp.analysis.report import comparison_tables, pareto, tuned_figures
from fedpgp.analysis.report.figures import ReportFigure, all_figures
from fedpgp.analysis.report.style import Drawing
from fedpgp.analysis.report.tables import Table, as_markdown
from fedpgp.analysis.statistic import over
from fedpgp.config.values import dump_yaml, load_yaml
from fedpgp.core import provenance
from fedpgp.core.text import first_of
from fedpgp.core.uris import is_uri
from fedpgp.storage.copies import source_of
from fedpgp.storage.run_folder import RunFolder

Format = Literal["html", "md", "csv"]


def write(
    runs: Sequence[Path], form: Format, folder: Path | None, baseline: str | None = None, allow_mismatch: bool = False
) -> Path | str:
    """Compare runs and write the report into a folder, with the figures as PNG and SVG; without a folder, return it.

    Args:
        runs: folders of runs or sweeps, or storage roots.
        baseline: label of the group that differences refer to; None: the first.
        allow_mismatch: compare what would be refused, marked.

    Raises:
        RunError: there is no finished run, or they do not compare.
        ConfigError: no group has the label of the baseline.
    """
    comparison = loading.find(runs).compare(allow_mismatch)
    chosen = comparison.baseline(baseline)
    fronts = list(pareto.of_paths(runs))
    figures, notes = all_figures(comparison) if folder is not None or form == "html" else ([], [])
    tuned = tuned_figures.figures(comparison, chosen) if folder is not None or form == "html" else ()
    first, figures = [table for table, _ in fronts], [*(figure for _, figure in fronts), *tuned, *figures]
    if form == "csv":
        text = comparison_tables.as_csv(comparison, chosen)
    elif form == "md":
        tables, remarks = comparison_tables.all_tables(comparison, chosen), comparison_tables.remarks(comparison)
        text = as_markdown([*first, *tables], [*remarks, *notes])
    else:
        title = f"fedpgp: {first_of([Path(source_of(path.absolute())).name for path in runs], 3)}"
        text = page(comparison, chosen, title, figures, notes, _commands(runs, chosen), first)
    if folder is None:
        return text
    folder.mkdir(parents=True, exist_ok=True)
    for one in figures:
        one.drawing.save(folder / one.name)
    path = folder / f"report.{form}"
    path.write_text(text, encoding="utf-8")
    return path


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
    template.filters |= {"svg": _svg, "rank": {1: "best", 2: "second"}.get}
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
    """Summarize the comparison in sentences: the best group, and whether its lead exceeds the spread over folds."""
    runs = sum(len(group.runs) for group in comparison.groups)
    differ = "differ by seed, split and held-out domain only"
    lines = [f"{runs} runs in {len(comparison.groups)} groups; the runs of a group {differ}."]
    if (metric := comparison.main) is None:
        return lines
    for scenario, groups in comparison.scenarios.items():
        means = [(found.mean, group) for group in groups if (found := group.statistic(metric))]
        if len(means) > 1:
            mean, best = max(means, key=lambda one: one[0])
            where = f" on {scenario}" if scenario else ""
            lead = _margin(comparison, best, baseline, metric)
            lines.append(f"Highest {METRIC_TITLES[metric]}{where}: {best.label} with {mean:.2f}. {lead}")
    return lines


def environment(comparison: Comparison) -> dict[str, str]:
    """Data, backbone, hardware and versions of the runs; all values if they differ."""
    rows: dict[str, dict[str, None]] = {}
    for run in (run for group in comparison.groups for run in group.runs.values()):
        own = run.identity
        facts = [(key, own.get(key)) for key in ("data", "backbone")]
        facts += [("data digest", own.get("manifest_digest")), ("content digest", own.get("content_digest"))]
        facts += [("weights", own.get("weights_fingerprint"))]
        for made in run.stretches:
            facts += [("git_commit", made.get("git_commit")), ("code_digest", made.get("code_digest"))]
            facts += [*made.get("hardware", {}).items(), *made.get("versions", {}).items()]
        facts += [(run.path.name, "; ".join(provenance.by_rounds(run.stretches, run.rounds)))]
        for key, value in facts:
            if value not in (None, [], ""):
                rows.setdefault(key.replace("_", " "), {})[str(value)] = None
    return {key: ", ".join(values) for key, values in rows.items()}


def _commands(runs: Sequence[Path], baseline: str) -> list[str]:
    """The commands that run the sweeps again, then write this report; those of single runs are in the report."""
    places = {path: source_of(path.absolute()) for path in runs}
    sweeps = [place for path, place in places.items() if (path / "trials.json").is_file()]
    files = [place if is_uri(place) else f"{place}/sweep.yaml" for place in sweeps]
    again = f"fedpgp report {shlex.join(places.values())} --baseline {shlex.quote(baseline)} --out report"
    return [*(f"fedpgp sweep {shlex.quote(file)}" for file in files), again]


def _margin(comparison: Comparison, best: Group, baseline: str, metric: str) -> str:
    """A sentence on the best group's lead over the baseline."""
    if comparison.reference(best.scenario, baseline) is best:
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
        f"{over(found.by_seed)}, which {verdict} 0."
    )


def _recipe(group: Group) -> dict[str, Any]:
    """Label of a group, the commands that repeat its runs, and the settings of its first run as YAML."""
    runs = list(group.runs.values())
    settings = load_yaml(RunFolder.open(runs[0].path).config_yaml)
    settings.pop("tracking", None)  # it may name a server with its password
    return {
        "label": f"{group.label} ({group.scenario})" if group.scenario else group.label,
        "commands": [f"fedpgp run {run.path / 'config.yaml'}" for run in runs if not is_uri(source_of(run.path))],
        "config": dump_yaml(settings),
    }


def _svg(drawing: Drawing) -> str:
    """A figure as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.svg).decode()
