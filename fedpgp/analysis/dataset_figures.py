"""Figures of an experiment's data: wires the division of the data to the drawings."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedpgp.analysis.report.data_figures import contact_sheet, fitted, partition_heat_map
from fedpgp.analysis.report.style import save
from fedpgp.config import Experiment
from fedpgp.data import manifest as manifests
from fedpgp.data import protocol
from fedpgp.data.summary import partition_table

CLASSES = 12
IMAGES = 8


def show(settings: Experiment, folder: Path, most_clients: int) -> list[Path]:
    """Draw the heat map and the first clients' contact sheets: a few images of a few of their classes.

    Returns:
        The files, all in `folder`.

    Raises:
        DataError: the data cannot be used, or an image cannot be read; then nothing is drawn.
    """
    manifest = manifests.build(settings.data)
    data = protocol.build(manifest, settings.partition, settings.protocol, settings.seed)
    classes = [manifest.class_names[label] for label in data.class_sets[data.train_set]]
    reader = manifests.open_reader(settings.data)
    sheets = {}
    for client, name in enumerate(data.client_names[:most_clients]):
        rows, labels = data.train_rows[client], data.train_labels[client]
        path = folder / f"client-{client:04d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.png"
        sheets[path] = [
            (f"{name}: {classes[label]}", [fitted(image) for image in reader.read(manifest.table.take(chosen))])
            for label in np.unique(labels)[:CLASSES]
            for chosen in [rows[labels == label][:IMAGES]]
        ]
    heat_map = partition_heat_map(partition_table(manifest, data), data.client_names, classes)
    paths = save(heat_map, folder / "partition")
    for path, sheet in sheets.items():
        contact_sheet(sheet, path)
    return [*paths, *sheets]
