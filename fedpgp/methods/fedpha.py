"""FedPHA (Fang et al., ICML 2025): local prompts, maybe of several lengths, close to the global prompt's subspace."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedpgp.clip.text_backbone import ClassSet
from fedpgp.config import Settings
from fedpgp.core.tree import ParamTree
from fedpgp.methods.base import (
    Batch,
    Classifier,
    Metrics,
    Phase,
    PromptMethod,
    class_mean,
    cosine_logits,
    cross_entropy,
)
from fedpgp.methods.coop import INIT_STD


class FedPHASettings(Settings):
    """Settings of FedPHA."""

    n_ctx: int = Field(16, ge=1)
    """L, tokens of the global prompt, and of the local ones without `local_lengths`"""
    local_lengths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    """L_i, tokens of the local prompts: client i has entry i, from the start again after the last; null: `n_ctx`"""
    ratio: float = Field(0.8, gt=0, le=1)
    """share of the global prompt's directions, the weakest ones, onto which local prompts are projected"""
    margin: float = Field(1.0, ge=0)
    """alpha, distance up to which the features of both prompts are pushed apart, at most 2; 0: no push"""


class FedPHA(PromptMethod):
    """min L_ce(p_i) + L_ce(p_G) + L_pull + L_push over the local prompt p_i and the global prompt p_G, in one step.

    Legend: p_G is `ctx` (L, D), p_i the first L_i rows of `local` (longest length, D). z(p) are the normalised text
    features (C, E) of a prompt. V_2 are the right singular vectors k, k + 1, ... of p_G, from 0 by decreasing singular
    value, k = int(L (1 - ratio)); p' = p_i V_2 V_2^T.

        L_pull = mean over classes and features of (z(p_i) - z(p'))^2
        L_push = mean over classes of max(0, alpha - ||z(p_i) - z(p_G)||)

    The classes are all of the task or, with `protocol.train_classes: own`, the client's. All four terms have weight 1
    and train both prompts: there is no stop-gradient, and the pull reaches p_G through V_2. L_pull is of the order of
    1/E. Classification is by p_i alone. Neutral values: margin = 0 has no push; L_pull is 0 for a p_i in the span of
    V_2; without both, p_i is CoOp's prompt and p_G PromptFL's.

    Shared: `ctx`, which travels up and down in every round and is averaged by numbers of images. `local` stays with the
    client. The global model classifies by p_G. With `local_lengths`, `local` is padded with zeros and L_i is `length`
    (1,), an integer that no phase learns; prompts are encoded in groups of equal length. This and the decomposition of
    p_G wait for the device in every step.

    V_2 follows the authors' code, not its name "null space": it spans the weak directions within the rows of p_G, so
    what lies outside their span, most of D, is removed from p_i. (k is rounded down from floating point there too:
    L = 20 and ratio 0.8 give 3.)

    Departs from the authors' code: features are read at each prompt's own end-of-text, while theirs reads those of
    prompts shorter than the longest of all clients at a padding token behind it, so a client's features depend on the
    others' lengths; local prompts are the first L_i tokens of one draw for all clients (theirs has a draw for each);
    clients may be absent (theirs ignores the setting); one precision throughout. Both have a fresh optimizer per client
    and round.
    """

    name: ClassVar[str] = "fedpha"
    paper: ClassVar[str] = "Fang et al., ICML 2025"
    settings_type: ClassVar[type[Settings]] = FedPHASettings
    shared_keys: ClassVar[frozenset[str]] = frozenset({"ctx"})
    phases: tuple[Phase, ...] = (Phase(frozenset({"ctx", "local"})),)

    def __init__(self, settings: FedPHASettings) -> None:
        self.settings = settings

    def init(self, frozen: ClassSet, generator: torch.Generator) -> ParamTree:
        """Both prompts, each drawn from N(0, 0.02); `local` is as long as the longest prompt.

        Raises `DataError` if the longest prompt is longer than the text tower allows.
        """
        length, lengths = self.settings.n_ctx, self.settings.local_lengths
        longest = max([length, *(lengths or ())])
        frozen.check_room(longest)
        ctx, local = (INIT_STD * torch.randn(rows, frozen.width, generator=generator) for rows in (length, longest))
        return {"ctx": ctx, "local": local} | ({"length": torch.tensor([longest])} if lengths else {})

    def personal_of(self, client: int, personal: ParamTree) -> ParamTree:
        """The client's local prompt: the first L_i rows, then zeros, and L_i."""
        lengths, local = self.settings.local_lengths, personal["local"]
        if lengths is None:
            return personal
        length = lengths[client % len(lengths)]
        return {"local": _padded(local[:length], len(local)), "length": torch.tensor([length])}

    def loss(self, params: ParamTree, received: ParamTree, frozen: ClassSet, batch: Batch) -> tuple[Tensor, Metrics]:
        """All four terms with weight 1 (K,), and each of them."""
        p_g, p_i = params["ctx"], params["local"]
        clients, longest = p_i.shape[:2]
        prompts = torch.cat([p_i, p_i @ weak_directions(p_g, self.settings.ratio), _padded(p_g, longest)])
        own = self._lengths(params)
        text = _encode(prompts, [*own, *own, *[self.settings.n_ctx] * clients], frozen)
        z_i, z_p, z_g = F.normalize(text, dim=-1).chunk(3)
        ce, ce_global = (cross_entropy(cosine_logits(batch.features, z, frozen.logit_scale), batch) for z in (z_i, z_g))
        pull = class_mean((z_i - z_p).square().mean(-1), batch)
        push = class_mean(F.relu(self.settings.margin - torch.linalg.vector_norm(z_i - z_g, dim=-1)), batch)
        parts = {"ce": ce, "ce_global": ce_global, "pull": pull, "push": push}
        return ce + ce_global + pull + push, parts

    def classifier(self, params: ParamTree, frozen: ClassSet) -> Classifier:
        """Scaled cosines with the text features of p_i."""
        z_i = _encode(params["local"], self._lengths(params), frozen)
        return lambda features: cosine_logits(features, z_i, frozen.logit_scale)

    def global_model(self, params: ParamTree) -> ParamTree:
        """The global prompt in place of the local one."""
        changed = params | {"local": _padded(params["ctx"], params["local"].shape[1])}
        if "length" in params:
            changed["length"] = torch.full_like(params["length"], self.settings.n_ctx)
        return changed

    def _lengths(self, params: ParamTree) -> list[int]:
        """L_i of each client."""
        if "length" not in params:
            return [self.settings.n_ctx] * len(params["local"])
        lengths: list[int] = params["length"].flatten().tolist()
        return lengths


def weak_directions(prompt: Tensor, ratio: float) -> Tensor:
    """The projector V_2 V_2^T (K, D, D) onto the weakest directions of prompts (K, L, D); 0 for one that is not finite.

    Its gradient exists if the singular values differ.
    """
    _, _, directions = torch.linalg.svd(torch.where(prompt.isfinite(), prompt, 0.0), full_matrices=False)
    weak = directions[:, int(prompt.shape[1] * (1 - ratio)) :]
    projector: Tensor = weak.mT @ weak
    return projector


def _padded(prompt: Tensor, length: int) -> Tensor:
    """A prompt (..., L, D) with rows of zeros up to `length`."""
    return F.pad(prompt, (0, 0, 0, length - prompt.shape[-2]))


def _encode(prompts: Tensor, lengths: Sequence[int], frozen: ClassSet) -> Tensor:
    """Text features (P, C, E), not normalised, of the first `lengths[p]` rows of each prompt (P, longest, D)."""
    if len(set(lengths)) == 1:
        return frozen.encode(prompts[:, : lengths[0]])
    groups = [[place for place, other in enumerate(lengths) if other == length] for length in sorted(set(lengths))]
    order = torch.tensor([place for group in groups for place in group], device=prompts.device)
    parts = [frozen.encode(prompts[group, : lengths[group[0]]]) for group in groups]
    text: Tensor = torch.cat(parts)[order.argsort()]
    return text
