"""Everything that can be reproduced: names of tables, papers, data sets, and how many runs each takes."""

from fedpgp.analysis.report import tables
from fedpgp.analysis.reproduce import planning
from fedpgp.analysis.reproduce.tables import TABLES
from fedpgp.data.protocol import EVERY_DOMAIN
from fedpgp.experiments.sweeps import sampling, sweep_settings

HEADINGS = ("name", "table", "paper", "data sets", "runs")


def overview() -> tables.Table:
    """A row per table of `TABLES`. No data set is read, so domains that are held out in turn are not counted."""
    rows = []
    for name, table in TABLES.items():
        authors, *_, published = table.published(name).source.split(", ")
        shipped = ((sweep_settings.load(one)[0], own) for one, own in table.sweeps.items())
        sweeps = [planning.narrowed(sweep, table.variants, own, None) for sweep, own in shipped]
        trials = [(sweep, trial) for sweep in sweeps for trial in sampling.draw(sweep).trials]
        data = dict.fromkeys(one for _, trial in trials for one in planning.names(trial.experiment.data))
        runs = str(sum(len(sampling.folds(sweep, trial, None)) for sweep, trial in trials))
        runs += " per domain" * any(sweep.folds.held_out == EVERY_DOMAIN for sweep in sweeps)
        rows.append((name, table.title, f"{authors}, {published}", ", ".join(data), runs))
    caption = "times and bytes of each: fedpgp reproduce NAME --dry-run"
    return tables.Table("Tables of papers", HEADINGS, rows, text_columns=4, caption=caption)
