"""Runs, and methods, as tables that a person can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fedpgp.analysis.comparison import Comparison, Statistic, ranks
from fedpgp.analysis.report.labels import METRIC_TITLES, READING_TITLES
from fedpgp.core.callbacks import Event
from fedpgp.core.errors import RunError
from fedpgp.core.text import disk_size
from fedpgp.federation.metrics import METRICS, last_evaluated, per_client_table, summarize
from fedpgp.storage.run_folder import RunFolder

if TYPE_CHECKING:
    from fedpgp.federation.extraction import Forecast

STANDING = ("local", "base", "novel", "hm")
MAX_CLIENT_ROWS = 100
MOST_KEYS = 8


def show(run_dir: Path) -> Group:
    """One run: its accuracies, its costs, and its clients in the last round that was evaluated.

    Raises:
        RunError: the folder is not that of a run.
    """
    store = RunFolder.open(run_dir)
    numbers = summarize(store.identity, store.rounds())
    return Group(_accuracies(store.path.name, numbers), _costs(store, numbers), _clients(store))


def method_table(kinds: Iterable[type[Any]], count: Callable[[Any], tuple[int, int]], backbone: str) -> Table:
    """The methods: whose they are, which parameters leave a client and which never do, and their settings.

    Args:
        count: shared and personal parameters of a method on `backbone`.
    """
    caption = f"in brackets: numbers of parameters of one client on {backbone}, with these settings"
    table = Table(title="Methods", caption=caption, show_lines=True)
    for heading in ("method", "shared", "personal", "settings and defaults"):
        table.add_column(heading, overflow="fold")
    for kind in kinds:
        method = kind(kind.settings_type())
        numbers = count(method)
        learned = {key for phase in method.phases for key in phase.keys}
        settings = method.settings.model_dump(mode="json").items()
        table.add_row(
            f"[bold]{kind.name}[/bold]\n{kind.paper}",
            _counted(method.shared_keys, numbers[0]),
            _counted(learned - method.shared_keys, numbers[1]),
            escape("\n".join(f"{key}: {json.dumps(value)}" for key, value in settings)) or "-",
        )
    return table


def _counted(keys: Set[str], number: int) -> str:
    """The keys and how many numbers they hold; whole networks by their first names."""
    shown = sorted(keys if len(keys) <= MOST_KEYS else {f"{key.partition('.')[0]}.*" for key in keys})
    return f"{', '.join(shown)} ({number:,})" if keys else "-"


def _accuracies(run: str, numbers: Mapping[str, Any]) -> Table:
    table = Table(title=f"{escape(run)}: accuracy in percent")
    table.caption = "mean over clients\nmax on test selects on the test images"
    for heading in ("split", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in READING_TITLES.values():
        table.add_column(heading, justify="right")
    for split in ("val", "test"):
        for metric in (one for one in METRICS if f"{split}/{one}" in numbers["metrics"]):
            values = numbers["metrics"][f"{split}/{metric}"]
            table.add_row(split, METRIC_TITLES[metric], *(f"{values[reading]:.2f}" for reading in READING_TITLES))
        table.add_section()
    return table


def _costs(store: RunFolder, numbers: Mapping[str, Any]) -> Table:
    """What the run has done so far, also one that goes on or failed."""
    table = Table(title="Run")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for heading in ("rounds", "sent up", "sent down"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("seconds per round", no_wrap=True)
    run = f"{store.path.name}\n{numbers['method']} on {numbers['data']}"
    sent = (disk_size(numbers["bytes_up"]), disk_size(numbers["bytes_down"]))
    seconds = "\n".join(f"{stage} {value:.2f}" for stage, value in numbers["seconds"].items())
    table.add_row(run, store.state, str(numbers["rounds"]), *sent, seconds)
    if reason := store.status["reason"]:
        table.caption = escape(reason)
    return table


def _clients(store: RunFolder) -> Table | str:
    last = last_evaluated(store.rounds())
    if last is None:
        return "No round has been evaluated yet."
    rows = per_client_table(store.clients(), last)
    measured = rows.column_names[2:]
    table = Table(title=f"Clients after round {last}, accuracy in percent")
    for heading in ("client", "split"):
        table.add_column(heading, overflow="fold")
    for name in measured:
        table.add_column(METRIC_TITLES[name], justify="right")
    names = store.identity.get("client_names")
    for row in rows.slice(0, MAX_CLIENT_ROWS).to_pylist():
        values = ("-" if row[name] is None else f"{row[name]:.2f}" for name in measured)
        client = escape(names[row["client"]]) if names else str(row["client"])
        table.add_row(client, row["split"], *values)
    if rows.num_rows > MAX_CLIENT_ROWS:
        table.caption = f"the first {MAX_CLIENT_ROWS} of {rows.num_rows} rows"
    return table


def overview(root: Path) -> Table:
    """All runs under a storage root, by name.

    Raises:
        RunError: there is none.
    """
    table = Table(title=f"Runs under {escape(str(root))}")
    for heading in ("run", "method", "data", "state", "rounds"):
        table.add_column(heading, overflow="fold")
    for store in RunFolder.find(root):
        try:
            rounds, identity = store.rounds(), store.identity
            done = str(rounds[-1].round if rounds else 0)
            told = (store.path.name, identity.get("method", "-"), identity.get("data", "-"), store.state, done)
            table.add_row(*map(escape, told))
        except RunError:  # one torn run does not hide the others
            table.add_row(store.path.name, "-", "-", "unreadable", "-")
    return table


def drivers(last_events: Mapping[str, Event | None]) -> Table:
    """The drivers on a cluster, and the last event of each."""
    table = Table(title="Drivers on the cluster")
    for heading in ("driver", "last event", "details"):
        table.add_column(heading, overflow="fold")
    for name, event in last_events.items():
        details = [] if event is None else [part for part in event.arguments if isinstance(part, str | int)]
        what = "starting" if event is None else event.method.removeprefix("on_")
        table.add_row(name, what, escape("  ".join(map(str, details))))
    return table


def measurement(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> Table:
    """A measurement of `fedpgp bench`."""
    table = Table(title=f"bench {title}", caption="\n".join(notes))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def forecasts(found: Sequence[Forecast], workers: int, threads: int) -> Table:
    """What extractions would take: images, bytes on disk, and time on so many workers with so many threads each."""
    measured = max((one.sample for one in found), default=0)
    table = Table(title="Frozen features, nothing extracted")
    table.caption = (
        f"time: from {measured} images encoded on this machine, for {workers} workers x {threads} threads as "
        "fast as that one was"
        if measured
        else "all there already"
    )
    for heading in ("cache", "there already", "to encode", "bytes to write", "time"):
        table.add_column(heading, justify="left" if heading == "cache" else "right", overflow="fold")
    for one in found:
        seconds = one.images * one.seconds_per_image / workers
        table.add_row(
            one.path.name,
            f"{one.present:,}",
            f"{one.images:,}",
            disk_size(one.num_bytes),
            str(timedelta(seconds=ceil(seconds))),
        )
    return table


def standings(comparison: Comparison) -> Table:
    """Groups by label, mean and standard deviation over seeds, the best of each column marked."""
    seeds = max(len(group.seeds) for group in comparison.groups)
    table = Table(title="Test accuracy in percent, mean over clients; * best")
    table.caption = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    table.add_column("method")
    columns = []
    for metric in STANDING:
        table.add_column(METRIC_TITLES[metric], justify="right")
        found = [group.statistic(metric) for group in comparison.groups]
        best = ranks([one.mean if one else None for one in found], digits=1)
        columns.append([_standing(one, rank == 1) for one, rank in zip(found, best, strict=True)])
    for group, cells in zip(comparison.groups, zip(*columns, strict=True), strict=True):
        table.add_row(escape(group.label), *cells)
    return table


def _standing(found: Statistic | None, best: bool) -> str:
    if found is None:
        return "-  "
    cell = f"{found.mean:.1f}" + ("" if found.std is None else f" ± {found.std:.1f}")
    return f"[bold green]{cell} *[/]" if best else f"{cell}  "


def held_out_accuracies(store: RunFolder) -> dict[str, float]:
    """Accuracy of each client's model on the domain that was held out, in percent, after the last round."""
    rounds = store.rounds()
    table = per_client_table(store.clients(), rounds[-1].round)
    names = store.identity["client_names"]
    rows = (row for row in table.to_pylist() if row["split"] == "test" and row.get("held_out") is not None)
    return {names[row["client"]]: row["held_out"] for row in rows}
