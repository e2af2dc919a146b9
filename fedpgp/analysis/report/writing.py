"""Write a comparison as an HTML, Markdown or CSV report, with its figures."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fedpgp.analysis import loading
from fedpgp.analysis.report import comparison_tables
from fedpgp.analysis.report.figures import all_figures
from fedpgp.analysis.report.page import page
from fedpgp.analysis.report.style import save
from fedpgp.analysis.report.tables import as_markdown
from fedpgp.core.text import first_of

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
    figures, notes = all_figures(comparison) if folder is not None or form == "html" else ([], [])
    if form == "csv":
        text = comparison_tables.as_csv(comparison, chosen)
    elif form == "md":
        tables, remarks = comparison_tables.all_tables(comparison, chosen), comparison_tables.remarks(comparison)
        text = as_markdown(tables, [*remarks, *notes])
    else:
        title = f"fedpgp: {first_of([path.absolute().name for path in runs], 3)}"
        text = page(comparison, chosen, title, figures, notes, _commands(runs, chosen))
    if folder is None:
        return text
    folder.mkdir(parents=True, exist_ok=True)
    for one in figures:
        save(one.figure, folder / one.name)
    path = folder / f"report.{form}"
    path.write_text(text, encoding="utf-8")
    return path


def _commands(runs: Sequence[Path], baseline: str) -> list[str]:
    """The commands that run the sweeps again, then write this report; those of single runs are in the report."""
    sweeps = [path.absolute() / "sweep.yaml" for path in runs if (path / "trials.json").is_file()]
    given = " ".join(shlex.quote(str(path.absolute())) for path in runs)
    again = f"fedpgp report {given} --baseline {shlex.quote(baseline)} --out report"
    return [*(f"fedpgp sweep {shlex.quote(str(path))}" for path in sweeps), again]
