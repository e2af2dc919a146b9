"""Link the artifacts of an MLflow run from its description, so that they are one click away from its page."""

from collections.abc import Collection
from urllib.parse import urlencode

TITLES = {
    "clients.csv": "accuracies of each client",
    "folds.csv": "accuracies of each fold",
    "comparison.md": "comparison",
    "comparison.csv": "comparison as CSV",
    "figures/confusion.png": "confusion matrix",
    "figures/reliability.png": "reliability",
    "pareto.md": "Pareto front",
    "figures/pareto.png": "figure of the Pareto front",
    "figures/tradeoff.png": "Local against Novel",
    "figures/grid.png": "grid of two settings",
    "figures/curves.png": "curves",
    "partition.csv": "partition",
    "config.yaml": "settings",
    "sweep.yaml": "settings",
    "traceback.txt": "traceback",
}
"""Artifacts that MLflow's page shows, in the order of their links."""
DOWNLOADS = {"prompt.safetensors": "learned prompt"}
"""Artifacts that it only downloads."""
WORKFLOW = "workflowType=machine_learning"
"""Part of an address with which MLflow's page shows runs of training instead of language models."""
SHOWN = "figures/curves.png"
"""The artifact that is part of the description itself."""


def linked(note: str, experiment: str, run_id: str, files: Collection[str]) -> str:
    """A description in Markdown with links to the known artifacts below its first paragraph, and the curves at its end.

    `files` are the paths of all artifacts of the MLflow run.
    """
    page = f"#/experiments/{experiment}/runs/{run_id}/artifacts"
    found = [f"[{title}]({page}/{file}?{WORKFLOW})" for file, title in TITLES.items() if file in files]
    found += [f"[{title}]({_content(run_id, file)})" for file, title in DOWNLOADS.items() if file in files]
    first, _, rest = note.partition("\n\n")
    links = [f"Artifacts: {', '.join(found)}"] if found else []
    image = [f"![curves]({_content(run_id, SHOWN)})"] if SHOWN in files else []
    return "\n\n".join([first, *links, *filter(None, [rest]), *image])


def _content(run_id: str, file: str) -> str:
    """The address of an artifact's content, below that of MLflow's page."""
    return f"get-artifact?{urlencode({'path': file, 'run_uuid': run_id})}"
