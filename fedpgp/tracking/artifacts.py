"""Write the artifacts of runs, trials and sweeps: tables, figures, settings, and learned parameters."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import safetensors.torch

from fedpgp.core.errors import RunError
from fedpgp.core.text import redacted
from fedpgp.core.tree import num_bytes
from fedpgp.federation.metrics import last_evaluated, per_client_table
from fedpgp.storage.objectives import Objectives
from fedpgp.storage.run_folder import RunFolder
from fedpgp.storage.sweep_folder import SweepFolder
from fedpgp.tracking.descriptions import Outcome, ranking

MOST_COMPARED = 12
"""Largest number of trials in a figure that shows each separately."""
SMALL = 16 * 2**20
"""Bytes up to which parameters are attached: all, or else only the shared ones. The run's folder has all."""


def of_run(store: RunFolder, config_yaml: str, folder: Path) -> None:
    """Write the artifacts of a run.

    * `config.yaml`, `summary.json`, `partition.csv`, `clients.csv` (accuracies per client in the last round)
    * `figures/curves.png`, `figures/confusion.png`, `figures/reliability.png`
    * `prompt.safetensors` (parameters of the best round by validation), `checkpoint.safetensors` (of the last round)
    * `traceback.txt` if the run failed
    """
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    if (summary := store.summary) is not None:
        (folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
    _tables(store, folder)
    _figures(store, folder / "figures")
    _learned(store, folder)
    if (traceback := store.path / "traceback.txt").exists():
        (folder / traceback.name).write_text(redacted(traceback.read_text(encoding="utf-8")), encoding="utf-8")


def of_trial(trial: Outcome, traceback: str | None, objectives: Objectives, folder: Path) -> None:
    """Write `folds.csv`, `figures/curves.png` of the (first) metric, and `traceback.txt` if the trial failed."""
    from fedpgp.analysis.report.run_figures import curves_of_several

    rounds = {fold: run.rounds() for fold, run in trial.runs.items()}
    rows = [
        {"fold": fold, "run": run.path.name, "state": run.state, **(rounds[fold][-1].metrics if rounds[fold] else {})}
        for fold, run in trial.runs.items()
    ]
    if rows:
        pa.csv.write_csv(pa.Table.from_pylist(rows), folder / "folds.csv")
    curves_of_several(rounds, objectives.metrics[0], folder / "figures/curves.png")
    if traceback is not None:
        (folder / "traceback.txt").write_text(redacted(traceback), encoding="utf-8")


def of_sweep(sweep: SweepFolder, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write `sweep.yaml`, `comparison.csv`, `comparison.md`, and figures.

    Those are: curves of the trials, Local against Novel, and a grid of two settings. With two metrics also `pareto.md`
    and `figures/pareto.png`.
    """
    from fedpgp.analysis import loading
    from fedpgp.analysis.report import comparison_figures, comparison_tables, pareto, run_figures, style, tables

    (folder / "sweep.yaml").write_text(redacted(sweep.spec_yaml), encoding="utf-8")
    series = {one.planned.label: one.rounds for one in ranking(outcomes, sweep.objectives.mode)}
    run_figures.curves_of_several(series, sweep.objectives.metrics[0], folder / "figures/curves.png")
    try:
        compared = loading.find([sweep.path]).compare()
    except RunError:  # no trial has finished
        return
    baseline = compared.baseline(None)
    text = tables.as_markdown(comparison_tables.all_tables(compared, baseline), comparison_tables.remarks(compared))
    (folder / "comparison.md").write_text(text, encoding="utf-8")
    (folder / "comparison.csv").write_text(comparison_tables.as_csv(compared, baseline), encoding="utf-8")
    figures = {}
    for table, figure in pareto.of_paths([sweep.path]):
        (folder / "pareto.md").write_text(f"{table.markdown()}\n", encoding="utf-8")
        figures[figure.name] = figure.figure
    if len(compared.scenarios) == 1 and {"local", "base", "novel"} <= set(compared.metrics()):
        figures["tradeoff"] = comparison_figures.local_against_novel(compared.groups[:MOST_COMPARED])
    numbers = [key for key in compared.differing if comparison_figures.is_numeric(compared.groups, key)]
    if len(numbers) > 1 and compared.main:
        down, across = numbers[:2]
        figures["grid"] = comparison_figures.settings_heat_map(compared.groups, down, across, compared.main)
    for stem, drawn in figures.items():
        (folder / "figures" / f"{stem}.png").write_bytes(style.encoded(drawn, "png"))


def _tables(store: RunFolder, folder: Path) -> None:
    if (partition := store.partition) is not None:
        pa.csv.write_csv(partition, folder / "partition.csv")
    if (last := last_evaluated(store.rounds())) is not None:
        table = per_client_table(store.clients(), last)
        names = store.identity.get("client_names")
        if names:
            table = table.add_column(1, "name", pa.array([names[client] for client in table["client"].to_pylist()]))
        pa.csv.write_csv(table, folder / "clients.csv")


def _figures(store: RunFolder, folder: Path) -> None:
    from fedpgp.analysis.comparison import PROTOCOL_METRICS
    from fedpgp.analysis.report import reliability, style
    from fedpgp.analysis.report.run_figures import confusion_matrices, curves_of_run

    curves_of_run(store.rounds(), folder / "curves.png")
    if (confusion := store.confusion) is not None:
        confusion_matrices(confusion, store.identity["class_names"], folder / "confusion.png")
    if bins := reliability.bins_of(store, PROTOCOL_METRICS):
        figure = reliability.reliability_diagrams({store.identity.get("method", ""): bins})
        (folder / "reliability.png").write_bytes(style.encoded(figure, "png"))


def _learned(store: RunFolder, folder: Path) -> None:
    """Write the parameters of the best and the last round: `shared/KEY`, and `personal/KEY` with clients in front."""
    rounds = [row.round for row in store.rounds()]
    for file, number in (("prompt", store.best or rounds[-1]), ("checkpoint", rounds[-1])) if rounds else ():
        try:
            state = store.state_at(number, clients=np.arange(0))  # rows on disk are read if they are few
            if whole := num_bytes(state.shared) + state.personal.num_bytes <= SMALL:
                state = store.state_at(number)
        except RunError:  # the last checkpoint of a killed run may be truncated
            continue
        if num_bytes(state.shared) > SMALL:
            continue
        tensors = {f"shared/{key}": value.contiguous() for key, value in state.shared.items()}
        if whole:
            tensors |= {f"personal/{key}": value.contiguous() for key, value in state.personal.items()}
        metadata = {"round": str(state.round), "personal": "all clients, stacked" if whole else "left out"}
        safetensors.torch.save_file(tensors, folder / f"{file}.safetensors", metadata)
