"""What `identity.json` says of a run: its keys, and the form that their values have."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypedDict


class Identity(TypedDict, total=False):
    """All that is known of a run when it begins; a run that was made elsewhere may say more, or less."""

    id: str
    """unique"""
    name: str
    config_digest: str
    created_ms: int
    """since 1970"""
    method: str
    data: str
    backbone: str | None
    """None: its method brings a network of its own"""
    seed: int
    client_names: list[str]
    class_names: list[str]
    num_examples: list[int]
    """training images of each client"""
    manifest_digest: str
    partition_digest: str
    weights_fingerprint: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    git_commit: str
