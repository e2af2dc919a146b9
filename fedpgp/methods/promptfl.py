"""PromptFL (Guo et al., 2023): CoOp's context, averaged by the server."""

from __future__ import annotations

from typing import ClassVar

from fedpgp.methods.coop import CoOp


class PromptFL(CoOp):
    """CoOp with one difference: `ctx` is shared, so the server averages it by numbers of images (FedAvg).

    Departs from the authors' code, whose average equals the last client's weights.
    """

    name: ClassVar[str] = "promptfl"
    paper: ClassVar[str] = "Guo et al., IEEE TMC 2023"
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
