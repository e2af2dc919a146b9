"""What the commands print: runs, methods, data sets, drivers, measurements and predictions as tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group

from fedpgp.analysis.report.labels import METRIC_TITLES, READING_TITLES
from fedpgp.analysis.report.tables import Table, mean_std
from fedpgp.core.callbacks import Event
from fedpgp.core.errors import RunError
from fedpgp.core.text import disk_size
from fedpgp.federation.metrics import METRICS, last_evaluated, per_client_table, summarize
from fedpgp.storage.run_folder import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame

    from fedpgp.analysis.spectra import Overlap, Spectrum
    from fedpgp.federation.extraction import Forecast

MAX_CLIENT_ROWS = 100
MAX_KEYS = 8
MAX_CLASSES = 60
SPLITS = ("train", "val", "test")
SPECTRUM_RANKS = (1, 2, 4, 8, 16)


def show(run_dir: Path) -> Group:
    """One run: its accuracies, its costs, and its clients in the last evaluated round.

    Raises:
        RunError: the folder is not a run folder.
    """
    store = RunFolder.open(run_dir)
    numbers = summarize(store.identity, store.rounds())
    return Group(_accuracies(store.path.name, numbers), _costs(store, numbers), _clients(store))


def method_table(
    methods: Iterable[tuple[str, str, type[Any] | Exception]], count: Callable[[Any], tuple[int, int]], backbone: str
) -> Table:
    """The methods: paper, origin, shared and personal parameters, settings.

    Args:
        methods: name, origin, and the class or why it cannot be used.
        count: shared and personal parameters of a method on `backbone`.
    """
    rows = []
    for name, origin, kind in methods:
        try:
            paper, *cells = _method_cells(kind, count)
        except Exception as error:  # whatever code from outside the package raises
            paper, *cells = "", "-", "-", f"cannot be used: {' '.join(str(error).split())}"
        rows.append((f"{name}\n{paper}\n", origin, *cells))  # ends in an empty line between methods
    headings = ("method", "origin", "shared", "personal", "settings and defaults")
    caption = f"in brackets: numbers of parameters of one client on {backbone}, with these settings"
    return Table.of("Methods", headings, rows, text_columns=5, caption=caption)


def _method_cells(kind: type[Any] | Exception, count: Callable[[Any], tuple[int, int]]) -> tuple[str, str, str, str]:
    """Paper, shared and personal parameters, settings."""
    if isinstance(kind, Exception):
        raise kind
    method = kind(kind.settings_type())
    shared, personal = count(method)
    learned = {key for phase in method.phases for key in phase.keys}
    settings = method.settings.model_dump(mode="json").items()
    return (
        kind.paper,
        _counted(method.shared_keys, shared),
        _counted(learned - method.shared_keys, personal),
        "\n".join(f"{key}: {json.dumps(value)}" for key, value in settings) or "-",
    )


def _counted(keys: Set[str], number: int) -> str:
    """The keys and their number of parameters; many keys by their common prefixes."""
    shown = sorted(keys if len(keys) <= MAX_KEYS else {f"{key.partition('.')[0]}.*" for key in keys})
    return f"{', '.join(shown)} ({number:,})" if keys else "-"


def _accuracies(run: str, numbers: Mapping[str, Any]) -> Table:
    found = numbers["metrics"]
    rows = [
        (split, METRIC_TITLES[metric], *(f"{found[f'{split}/{metric}'][reading]:.2f}" for reading in READING_TITLES))
        for split in ("val", "test")
        for metric in METRICS
        if f"{split}/{metric}" in found
    ]
    headings = ("split", "metric", *READING_TITLES.values())
    caption = "mean over clients\nmax on test selects on the test images"
    return Table.of(f"{run}: accuracy in percent", headings, rows, text_columns=2, caption=caption)


def _costs(store: RunFolder, numbers: Mapping[str, Any]) -> Table:
    """Cost so far, also of an unfinished run."""
    run = f"{store.path.name}\n{numbers['method']} on {numbers['data']}"
    sent = (disk_size(numbers["bytes_up"]), disk_size(numbers["bytes_down"]))
    seconds = "\n".join(f"{stage} {value:.2f}" for stage, value in numbers["seconds"].items())
    row = (run, store.state, str(numbers["rounds"]), *sent, seconds)
    headings = ("run", "status", "rounds", "sent up", "sent down", "seconds per round")
    return Table.of("Run", headings, [row], text_columns=2, caption=store.status["reason"] or "")


def _clients(store: RunFolder) -> Table | str:
    last = last_evaluated(store.rounds())
    if last is None:
        return "No round has been evaluated yet."
    found = per_client_table(store.clients(), last)
    measured = found.column_names[2:]
    names = store.identity.get("client_names")
    rows = [
        (names[row["client"]] if names else str(row["client"]), row["split"], *(mean_std(row[one]) for one in measured))
        for row in found.to_pylist()
    ]
    headings = ("client", "split", *(METRIC_TITLES[name] for name in measured))
    title = f"Clients after round {last}, accuracy in percent"
    return Table.of(title, headings, rows, text_columns=2, max_rows=MAX_CLIENT_ROWS)


def overview(root: Path) -> Table:
    """All runs under a storage root, by name.

    Raises:
        RunError: there are none.
    """
    rows = []
    for store in RunFolder.find(root):
        try:
            rounds, identity = store.rounds(), store.identity
            done = str(rounds[-1].round if rounds else 0)
            row = (store.path.name, identity.get("method", "-"), identity.get("data", "-"), store.state, done)
        except RunError:  # one damaged run does not hide the others
            row = (store.path.name, "-", "-", "unreadable", "-")
        rows.append(row)
    return Table.of(f"Runs under {root}", ("run", "method", "data", "state", "rounds"), rows, text_columns=4)


def drivers(last_events: Mapping[str, Event | None]) -> Table:
    """The drivers on a cluster, and the last event of each."""
    rows = []
    for name, event in last_events.items():
        details = [] if event is None else [part for part in event.arguments if isinstance(part, str | int)]
        what = "starting" if event is None else event.method.removeprefix("on_")
        rows.append((name, what, "  ".join(map(str, details))))
    return Table.of("Drivers on the cluster", ("driver", "last event", "details"), rows, text_columns=3)


def measurement(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> Table:
    """A measurement of `fedpgp bench`."""
    return Table.of(f"bench {title}", headings, rows, caption="\n".join(notes))


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
    return Table.of("Frozen features, nothing extracted", headings, rows, caption=caption)


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
    return Table.of(f"Images by {by}", (by, *SPLITS, "all"), rows, caption=caption)


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
    return Table.of("Predictions", ("image", "class", "probability"), rows, text_columns=2)


def overlaps(found: Mapping[str, Overlap]) -> Table:
    """Table 7 of the LoRA paper: how much of W is in the directions of its change, its own, and random ones."""
    rows = []
    for target, one in found.items():
        values = (one.delta, one.weight, one.random, one.weight_norm, one.delta_norm)
        amplification = f"{one.amplification:.2f}" if one.delta else "-"
        rows.append((target, *(f"{value:.3f}" for value in values), amplification))
    headings = ("target", "the change", "W itself", "random", "||W||", "||change||", "amplification")
    title = "||U^T W V||, U and V the top singular directions of ..."
    return Table.of(title, headings, rows, caption="means over the layers")


def spectrum_table(found: Spectrum) -> Table:
    """How many ranks the personal parts need, over the clients."""

    def rows() -> Iterator[tuple[str, ...]]:
        for rank in (*(rank for rank in SPECTRUM_RANKS if rank < most), most):
            shares = 100 * found.energy(rank)
            yield str(rank), *(f"{value:.1f} %" for value in (shares.mean(), shares.min(), shares.max()))
        needed = found.effective_rank().double()
        yield "for 90 %", f"{needed.mean():.1f}", f"{needed.min():.0f}", f"{needed.max():.0f}"

    most = found.values.shape[-1]
    norms = found.values.double().square().sum(-1).sqrt()
    caption = f"{norms.numel()} personal parts, norm {norms.mean():.3f}, at most rank {most}"
    headings = ("rank", "share of the squared norm", "minimum", "maximum")
    return Table.of("Is the personal part low-rank?", headings, rows(), caption=caption)
