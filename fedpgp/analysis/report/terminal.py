"""What the commands print: runs, sweeps, data sets, drivers, forecasts and predictions as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from math import ceil
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Group as Lines
from rich.text import Text

from fedpgp.analysis import coverage, loading
from fedpgp.analysis.comparison import METRIC_TITLES, READING_TITLES, Group
from fedpgp.analysis.report import measure_tables, privacy_tables
from fedpgp.analysis.report.tables import Cell, Table, mean_std, starred, statistic_text
from fedpgp.analysis.statistic import Statistic, over
from fedpgp.core import provenance
from fedpgp.core.callbacks import Event
from fedpgp.core.errors import RunError
from fedpgp.core.text import disk_size
from fedpgp.federation.metrics import (
    METRICS,
    SEEN,
    TESTED,
    last_evaluated,
    on_test_images,
    participation_gap,
    per_client_table,
    summarize,
)
from fedpgp.storage.copies import source_of
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import Fold, Repetition, SweepFolder

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame

    from fedpgp.analysis.adapters import Overlap
    from fedpgp.analysis.learned import Spectrum
    from fedpgp.experiments.estimation import Estimate
    from fedpgp.experiments.sweeps.sampling import SampledTrials
    from fedpgp.experiments.sweeps.sweep_settings import Sweep
    from fedpgp.federation.extraction import Forecast

MAX_CLIENT_ROWS = 100
MAX_CLASSES = 60
MAX_TRIALS = 60
STATE_ORDER = ("finished", "stopped", "failed", "missing")
SPLITS = ("train", "val", "test")
SPECTRUM_RANKS = (1, 2, 4, 8, 16)


def show(run_dir: Path) -> Lines:
    """One run: its accuracies and other measures, its costs, and its clients in the last evaluated round.

    Raises:
        RunError: the folder is not a run folder.
    """
    store = RunFolder.open(run_dir)
    numbers = summarize(store.identity, store.rounds())
    made = provenance.by_rounds(store.stretches, numbers["rounds"])
    private = privacy_tables.of_runs("Differential privacy", {store.path.name: [(numbers["metrics"], store.identity)]})
    more = [measure_tables.of_run(numbers["metrics"]), measure_tables.domains_of_run(store), private]
    shown = [_accuracies(store, numbers), *(table for table in more if table.rows), _costs(store, numbers)]
    return Lines(*shown, _clients(store), *made)


def _accuracies(store: RunFolder, numbers: Mapping[str, Any]) -> Table:
    found = numbers["metrics"]
    rows = [
        (split, METRIC_TITLES[metric], *(f"{found[f'{split}/{metric}'][reading]:.2f}" for reading in READING_TITLES))
        for split in TESTED
        for metric in METRICS
        if f"{split}/{metric}" in found
    ]
    headings = ("split", "metric", *READING_TITLES.values())
    fewer = dict.fromkeys(coverage.lines([coverage.of_run(store)], METRIC_TITLES).values())
    notes = ["mean over clients", *fewer, *coverage.left_out(store), "max on test selects on the test images"]
    gap = participation_gap({name: readings["last"] for name, readings in found.items()})
    if gap is not None:
        notes.append(f"participation gap: {gap:.2f} points in the last round (test/{SEEN} - new_client/local)")
    caption = "\n".join(notes)
    return Table(f"{store.path.name}: accuracy in percent", headings, rows, text_columns=2, caption=caption)


def _costs(store: RunFolder, numbers: Mapping[str, Any]) -> Table:
    """Cost so far, also of an unfinished run."""
    run = f"{store.path.name}\n{numbers['method']} on {numbers['data']}"
    sent = (disk_size(numbers["bytes_up"]), disk_size(numbers["bytes_down"]))
    seconds = "\n".join(f"{stage} {value:.2f}" for stage, value in numbers["seconds"].items())
    row = (run, store.state, str(numbers["rounds"]), *sent, seconds)
    headings = ("run", "status", "rounds", "sent up", "sent down", "seconds per round")
    return Table("Run", headings, [row], text_columns=2, caption=store.status["reason"] or "")


def _clients(store: RunFolder) -> Table | str:
    last = last_evaluated(store.rounds())
    if last is None:
        return "No round has been evaluated yet."
    found = per_client_table(store.clients(), last)
    measured = [name for name in found.column_names[2:] if not name.endswith("_adapted")]
    names, rows = store.identity.get("client_names"), []
    for row in found.to_pylist():
        for end in ("", "_adapted"):  # in a row of its own
            values = [row.get(one + end) for one in measured]
            if any(value is not None for value in values):
                name = names[row["client"]] if names else str(row["client"])
                rows.append((name, row["split"] + end.replace("_", ", "), *map(mean_std, values)))
    headings = ("client", "split", *(METRIC_TITLES[name] for name in measured))
    title = f"Clients after round {last}, accuracy in percent"
    return Table(title, headings, rows, text_columns=2, max_rows=MAX_CLIENT_ROWS)


def overview(root: Path) -> Table:
    """All runs under a storage root, by name; `RunFolder.find` refuses one without any."""
    rows = []
    for store in RunFolder.find(root):
        try:
            rounds, identity = store.rounds(), store.identity
            done = str(rounds[-1].round if rounds else 0)
            row = (store.path.name, identity.get("method", "-"), identity.get("data", "-"), store.state, done)
        except RunError:  # one damaged run does not hide the others
            row = (store.path.name, "-", "-", "unreadable", "-")
        rows.append(row)
    return Table(f"Runs under {source_of(root)}", ("run", "method", "data", "state", "rounds"), rows, text_columns=4)


def drivers(last_events: Mapping[str, Event | None]) -> Table:
    """The drivers on a cluster, and the last event of each."""
    rows = []
    for name, event in last_events.items():
        details = [] if event is None else [part for part in event.arguments if isinstance(part, str | int)]
        what = "starting" if event is None else event.method.removeprefix("on_")
        rows.append((name, what, "  ".join(map(str, details))))
    return Table("Drivers on the cluster", ("driver", "last event", "details"), rows, text_columns=3)


def forecasts(found: Sequence[Forecast], workers: int, threads: int) -> Table:
    """Images, bytes on disk and time that extractions would take with this many workers and threads of each."""
    rows = [
        (one.path.name, f"{one.present:,}", f"{one.images:,}", disk_size(one.num_bytes),
         str(timedelta(seconds=ceil(one.images * one.seconds_per_image / workers))))
        for one in found
    ]  # fmt: skip
    measured = max((one.sample for one in found), default=0)
    speed = f"from {measured} images encoded on this machine, for {workers} workers x {threads} threads of that speed"
    headings = ("cache", "cached", "to encode", "bytes to write", "time")
    caption = f"time: {speed}" if measured else "all features are cached"
    return Table("Frozen features, nothing extracted", headings, rows, caption=caption)


def split_counts(counts: pa.Table, by: str) -> Table:
    """Images by split and by `class` or `domain`, from `data.summary.manifest_table`."""
    grouped = counts.group_by(["split", by], use_threads=False).aggregate([("images", "sum")]).to_pylist()
    found = {(row[by], row["split"]): row["images_sum"] for row in grouped}
    names = sorted({name for name, _ in found})
    numbers = {name: [found.get((name, split), 0) for split in SPLITS] for name in names}
    total = [sum(own[number] for own in numbers.values()) for number in range(len(SPLITS))]
    shown = [*((name, numbers[name]) for name in names[:MAX_CLASSES]), ("all", total)]
    rows = [(name, *map(str, (*own, sum(own)))) for name, own in shown]
    caption = f"the first {MAX_CLASSES} of {len(names)}" if len(names) > MAX_CLASSES else ""
    return Table(f"Images by {by}", (by, *SPLITS, "all"), rows, caption=caption)


def itemized(title: str, items: Sequence[str], most: int = 1000) -> list[str]:
    """A heading with a count, then the items, one per line."""
    more = [f"  ... and {len(items) - most} more"] if len(items) > most else []
    return [f"{title}: {len(items) or 'none'}", *(f"  {item}" for item in items[:most]), *more]


def predictions(found: DataFrame) -> Table:
    """The rows of `fedpgp.predict`; images are named in their first row."""
    rows = [
        (str(row["image"]) if row["rank"] == 1 else "", row["class"], f"{row['probability']:.4f}")
        for row in found.to_dict("records")
    ]
    return Table("Predictions", ("image", "class", "probability"), rows, text_columns=2)


def overlaps(found: Mapping[str, Overlap]) -> Table:
    """Table 7 of the LoRA paper: how much of W is in the directions of its change, its own, and random ones."""
    rows = []
    for target, one in found.items():
        values = (one.delta, one.weight, one.random, one.weight_norm, one.delta_norm)
        amplification = f"{one.amplification:.2f}" if one.delta else "-"
        rows.append((target, *(f"{value:.3f}" for value in values), amplification))
    headings = ("target", "the change", "W itself", "random", "||W||", "||change||", "amplification")
    title = "||U^T W V||, U and V the top singular directions of ..."
    return Table(title, headings, rows, caption="means over the layers")


def spectrum_table(found: Spectrum) -> Table:
    """How many ranks the personal parts need, over the clients."""
    most = found.values.shape[-1]
    rows = []
    for rank in (*(rank for rank in SPECTRUM_RANKS if rank < most), most):
        shares = 100 * found.energy(rank)
        rows.append((str(rank), *(f"{value:.1f} %" for value in (shares.mean(), shares.min(), shares.max()))))
    needed = found.effective_rank()
    rows.append(("for 90 %", f"{needed.mean():.1f}", f"{needed.min():.0f}", f"{needed.max():.0f}"))
    norms = (found.values**2).sum(-1) ** 0.5
    caption = f"{norms.size} personal parts, norm {norms.mean():.3f}, at most rank {most}"
    headings = ("rank", "share of the squared norm", "minimum", "maximum")
    return Table("Is the personal part low-rank?", headings, rows, caption=caption)


def dry_run(sweep: Sweep, drawn: SampledTrials, found: Estimate) -> Lines:
    """What would run, what it takes, and what could not be checked."""
    trials = [(trial.id, trial.label, _folds(folds)) for trial, folds in zip(drawn.trials, found.folds, strict=False)]
    count, searched = f"{len(drawn.trials)} trials", sweep.tune.adaptive
    if searched:
        count = f"{sweep.tune.num_samples} trials, suggested one after another; these were checked"
    title = f"{sweep.name}: {count}, nothing started"
    table = Table(title, ("id", "trial", "folds"), trials, text_columns=3, max_rows=MAX_TRIALS)
    tune, objectives = sweep.tune, drawn.objectives
    selects = "  (selects on the test images)" if any(map(on_test_images, objectives.metrics)) else ""
    runs = tune.num_samples * max(map(len, found.folds)) if searched else sum(map(len, found.folds))
    lines = [
        f"runs:       {runs} (every trial once per fold)"
        + (f"; {drawn.repeated} drawn twice and left out" if drawn.repeated else ""),
        f"best:       {objectives.mode} of {objectives.title}, mean over folds{selects}",
        f"scheduler:  {tune.scheduler}, at most {tune.max_concurrent} trial(s) at a time",
        *(f"resources:  each trial {line}" for line in found.resources),
        f"time:       about {duration(found.seconds)} ({found.basis}), and the frozen features once",
        f"disk:       about {disk_size(found.disk_bytes)} of rows and checkpoints, and the frozen features once",
        f"wire:       about {disk_size(found.wire_bytes)} of parameters up and down (simulated)",
        *(f"rounded:    {line}" for line in found.rounded),
        *(f"not checked: {line}" for line in found.skipped),
    ]
    return Lines(table, *(Text(line, no_wrap=True, overflow="ignore") for line in lines))


def ranking(folder: SweepFolder) -> Table:
    """The trials of a sweep: finished ones from the best to the worst, then stopped, failed and missing ones."""
    objectives, results = folder.objectives, folder.results()
    sign = -1 if objectives.mode == "max" else 1
    found = []
    for trial in folder.trials:
        result = results.get(trial.id)
        state, value = (result.state, result.value) if result else ("missing", None)
        reason = f": {result.reason.splitlines()[0]}" if result and result.reason else ""
        values = result.values if result and result.values else (None,) * len(objectives.columns[1:])
        order = (STATE_ORDER.index(state), value is None, sign * (value or 0))
        found.append((order, trial, state + reason, value, values))
    rows: list[tuple[Cell | str, ...]] = []
    for number, (order, trial, state, value, values) in enumerate(sorted(found, key=lambda one: one[0]), 1):
        best = number == 1 and order[:2] == (STATE_ORDER.index("finished"), False)
        numbers: list[Cell | str] = [starred(mean_std(value), best), *map(mean_std, values)]
        rows.append((str(number), trial.label, state, *numbers, str(len(trial.folds))))
    changed = provenance.differing(folder.made_with())
    means = [coverage.of_run(RunFolder.open(path)) for _, path in folder.labelled() if path.is_dir()]
    known = coverage.lines(means, METRIC_TITLES)
    fewer = dict.fromkeys(known[metric] for metric in objectives.metrics if metric in known)
    made = f"made with different {provenance.as_text(changed)}" if changed else ""
    chosen = "chosen on the test images" * any(map(on_test_images, objectives.metrics))
    return Table(
        f"{folder.path.name}: {objectives.title}, mean over folds after the last round; * best",
        ("", "trial", "state", *objectives.columns, "folds"),
        rows,
        text_columns=3,
        caption="; ".join(filter(None, (chosen, *fewer, made))),
        max_rows=MAX_TRIALS,
    )


def held_out(folder: SweepFolder) -> Lines:
    """Leave one domain out: accuracy by held-out domain and client for each trial, then the trials side by side."""
    groups = []
    for trial in folder.trials:
        result = folder.result(trial.id)
        if result is not None and result.state == "finished":
            runs = {
                one.fold: loading.read(store.path) for one, store in zip(result.folds, folder.runs(result), strict=True)
            }
            groups.append(Group(trial.label, "", runs, frozenset(runs)))
    return Lines(*map(_by_client, groups), _by_domain(groups))


def _by_client(group: Group) -> Table:
    """Held-out domain by client, mean over the seeds."""
    found = loading.held_out_accuracies(group)
    clients = sorted({client for row in found.values() for client in row})
    rows = []
    for domain, row in found.items():
        values = list(row.values())
        mean = mean_std(fmean(values), stdev(values) if len(values) > 1 else None)
        rows.append((domain, *(mean_std(row.get(client)) for client in clients), mean))
    title = f"{group.label}: test accuracy in percent on the held-out domain, by client"
    caption = f"mean over {over(group.seeds)}; mean ± standard deviation over clients (ddof 1)"
    return Table(title, ("held out", *clients, "mean"), rows, caption=caption)


def _by_domain(groups: Sequence[Group]) -> Table:
    """A row per trial: the mean over clients for each held-out domain, and over all of them."""
    domains = list(dict.fromkeys(str(fold.held_out) for group in groups for fold in group.runs))
    seeds = {seed for group in groups for seed in group.seeds}
    rows = []
    for group in groups:
        by_domain: dict[str, dict[Repetition, float]] = {}
        for fold, run in group.runs.items():
            by_domain.setdefault(str(fold.held_out), {})[fold.repetition] = run.metrics["test/held_out"]["last"]
        found = [Statistic(by_domain[domain]) if domain in by_domain else None for domain in domains]
        rows.append((group.label, *map(statistic_text, found), statistic_text(group.statistic("held_out"))))
    caption = f"mean ± standard deviation over {over(seeds)} (ddof 1)" if len(seeds) > 1 else "one seed"
    title = "Held-out domains: test accuracy in percent, mean over clients"
    return Table(title, ("trial", *domains, "mean"), rows, caption=caption)


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `4 days`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def _folds(folds: Sequence[Fold]) -> str:
    """`seeds 1, 2, 3 x splits 1, 2 x held out a, b`."""
    parts = []
    for name, found in (("seed", [fold.seed for fold in folds]), ("split", [fold.split for fold in folds])):
        if values := dict.fromkeys(str(one) for one in found if one is not None):
            parts.append(f"{name}{'s' if len(values) > 1 else ''} {', '.join(values)}")
    held_out = dict.fromkeys(fold.held_out for fold in folds if fold.held_out)
    return " x ".join([*parts, *([f"held out {', '.join(held_out)}"] if held_out else [])])
