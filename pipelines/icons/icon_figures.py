"""Measure the icons and their model with fedpgp runs, and write the results into the model card.

One command: python pipelines/icons/icon_figures.py
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from fedpgp import config
from fedpgp.analysis import loading
from fedpgp.clip import images, model
from fedpgp.config import Experiment
from fedpgp.core.callbacks import RunCallback
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest
from fedpgp.data.sources import complete, open_source
from fedpgp.experiments.sweeps import sweep_runner, sweep_settings
from fedpgp.experiments.tracker import Tracker
from fedpgp.storage.sweep_folder import Repetition

BEGIN, END = "<!-- figures: written by pipelines/icons/icon_figures.py -->", "<!-- end of figures -->"


def compared(seeds: int, divisions: int, store: Path) -> dict[str, list[str]]:
    """Per split, the lines of a table of the variants that `fedpgp demo` compares: mean and standard error.

    The last one is that of the paired difference of HM to PromptFL.
    """
    overrides = [
        f"folds.seeds={list(range(1, seeds + 1))}",
        f"folds.splits={list(range(1, divisions + 1))}",
        "resources.backend=serial",
        "tracking.mlflow=false",
        f"storage.root={store}",
    ]
    sweep, _ = sweep_settings.load("demo", overrides)
    folder = sweep_runner.run(sweep, "failed", RunCallback(), Tracker())
    found = loading.compare(loading.Entry(path, label) for label, path in folder.labelled())
    baseline = next(group for group in found.groups if group.label == "PromptFL")
    tables = {}
    for split in ("test", "val"):
        tables[split] = ["| | Local | Base | Novel | HM | HM - PromptFL |", "|---|---|---|---|---|---|"]
        for group in found.groups:
            numbers = [group.statistic(metric, split) for metric in ("local", "base", "novel", "hm")]
            cells = [with_error(one.by_seed, "{:.1f}") for one in numbers if one]
            own, base = (one.statistic("hm", split) for one in (group, baseline))
            paired = own.minus(base) if own and base and group is not baseline else None
            cells.append(with_error(paired.by_seed, "{:+.1f}") if paired else "")
            tables[split].append(" | ".join([f"| {group.label}", *cells]) + " |")
    return tables


def with_error(values: Mapping[Repetition, float], form: str) -> str:
    """Mean and standard error, over the divisions of the drawings, of the means over seeds.

    Runs on one division share its test drawings, so that they are not independent of each other.
    """
    by_division: dict[int | None, list[float]] = {}
    for run, value in values.items():
        by_division.setdefault(run[1] if isinstance(run, tuple) else None, []).append(value)
    means = [fmean(own) for own in by_division.values()]
    return f"{form.format(fmean(means))} ± {stdev(means) / math.sqrt(len(means)):.2f}"


def features(settings: Experiment, data: Manifest) -> Tensor:
    """Normalised features of all pictures (n, E)."""
    backbone = model.load(settings.backbone)
    pictures = open_source(settings.data).read(data.table)
    pixels = images.normalise(images.cropped(pictures, backbone.image), backbone.image)
    with torch.no_grad():
        encoded = [backbone.model.visual(batch) for batch in pixels.split(256)]
    return F.normalize(torch.cat(encoded), dim=-1)


def probe(x: Tensor, y: Tensor, train: Tensor, test: Tensor, penalty: float) -> float:
    """Accuracy in percent on `test` of logistic regression fitted on `train`."""
    weight = torch.zeros(int(y.max()) + 1, x.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(20 * x[train] @ weight.T, y[train]) + penalty * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return float((x[test] @ weight.T).argmax(1).eq(y[test]).float().mean() * 100)


def probes(settings: Experiment) -> list[str]:
    """Linear probe on training drawings against zero-shot, both on test drawings, by class set; zero-shot by family."""
    data = manifest.build(settings.data)
    x, labels = features(settings, data), torch.tensor(data.labels).long()
    backbone = model.load(settings.backbone)
    template = settings.data.prompt
    with torch.no_grad():
        texts = backbone.model.encode_text(backbone.tokenize([template.format(name) for name in data.class_names]))
    texts = F.normalize(texts, dim=-1)
    split = {name: torch.tensor(data.splits == name) for name in ("train", "val", "test")}
    lines = ["", "| classes | zero-shot | linear probe on training drawings |", "|---|---|---|"]
    half = len(data.class_names) // 2
    for name, first in (("base", 0), ("novel", half)):
        own = (labels >= first) & (labels < first + half)
        y = labels - first
        zero = (x[own & split["test"]] @ texts[first : first + half].T).argmax(1)
        right = zero.eq(y[own & split["test"]]).float().mean() * 100
        y = y.clamp(0, half - 1)
        train, val, test = (own & split[name] for name in ("train", "val", "test"))
        penalty = max((1e-5, 1e-4, 1e-3), key=lambda penalty: probe(x, y, train, val, penalty))
        fitted = probe(x, y, train, test, penalty)
        lines.append(f"| {name} ({half}) | {right:.1f} | {fitted:.1f} |")
    zero = (x @ texts.T).argmax(1).eq(labels).float()
    domains = torch.tensor(data.domain_ids)
    by_family = ", ".join(f"{name} {zero[domains == i].mean() * 100:.0f}" for i, name in enumerate(data.domains))
    lines += ["", f"Zero-shot among all {len(data.class_names)} classes, all pictures of a family: {by_family}."]
    return lines


def identity(settings: Experiment) -> list[str]:
    """The section of the model card with the results."""
    data, backbone = manifest.build(settings.data), model.load(settings.backbone)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    return [
        "| | |",
        "|---|---|",
        f"| pictures | {len(data):,} in {len(data.class_names)} classes and {len(data.domains)} families |",
        f"| manifest | `{data.digest}` |",
        f"| model | {parameters / 1e6:.2f} M parameters, fingerprint `{backbone.fingerprint}` |",
        "",
    ]


def main(
    card: Annotated[Path, typer.Option(help="The model card.")] = Path("fedpgp/assets/MODEL_CARD.md"),
    seeds: Annotated[int, typer.Option(min=2, help="Seeds of each method.")] = 3,
    divisions: Annotated[int, typer.Option(min=2, help="Divisions of the drawings, each with every seed.")] = 12,
    store: Annotated[Path | None, typer.Option(help="Storage root with finished runs; default: none.")] = None,
) -> None:
    """Run every method with every seed, fit the probes, and replace the figures in the card."""
    torch.set_num_threads(1)
    settings = complete(config.load("icons"))
    lines = identity(settings)
    with nullcontext(store) if store else tempfile.TemporaryDirectory() as folder:
        tables = compared(seeds, divisions, Path(folder))
    runs = f"last round, mean of {seeds} seeds on each of {divisions} divisions ± standard error over the divisions"
    for split, title in (("test", "Test drawings"), ("val", "Validation drawings")):
        lines += [f"{title}; {runs}:", "", *tables[split], ""]
    lines += probes(settings)
    text = card.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN)[0], text.split(END)[1]
    card.write_text("\n".join([head + BEGIN, "", *lines, "", END]) + tail, encoding="utf-8")
    typer.echo(f"figures written to {card}")


if __name__ == "__main__":
    typer.run(main)
