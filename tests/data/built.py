"""Manifests of data sets that a test has written."""

from __future__ import annotations

from pathlib import Path

from fedpgp.config import DataSettings
from fedpgp.data import manifest
from fedpgp.data.manifest import Manifest


def build(name: str, root: Path, **settings: object) -> Manifest:
    return manifest.build(DataSettings(name=name, root=root, **settings))  # type: ignore[arg-type]


def rows(built: Manifest) -> list[tuple[str, str, str, str]]:
    """(file, class, domain, split)"""
    return [
        (file, built.class_names[label], built.domains[domain], split)
        for file, label, domain, split in zip(
            built.table["file"].to_pylist(), built.labels, built.domain_ids, built.splits.tolist(), strict=True
        )
    ]
