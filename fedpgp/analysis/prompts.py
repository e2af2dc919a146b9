"""What clients have learned, read from a run's last checkpoint: their prompts, and the words nearest to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp import config
from fedpgp.analysis.spectra import Spectrum, spectrum
from fedpgp.clip import model
from fedpgp.clip.icon_clip import ReducedTokenizer
from fedpgp.clip.text_tower import TextTower
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError
from fedpgp.federation.state import State
from fedpgp.storage.run_folder import RunFolder

WORD_END = "</w>"
"""How CLIP's byte-pair encoding marks the end of a word."""


@dataclass(frozen=True)
class Prompts:
    """The contexts of a run after its last round."""

    names: tuple[str, ...]
    """of the clients"""
    shared: Tensor | None
    """context tokens that the server holds (L, D); None: nothing is shared"""
    personal: Tensor | None
    """what is each client's own (K, L, D): U V or delta of FedPGP, the local prompt of FedOTP, the context of CoOp"""

    def similarity(self) -> Tensor:
        """Cosine similarities (K, K) of the clients' own parts, as long vectors; 0 to a part that is 0."""
        if self.personal is None:
            raise ValueError("no client has a prompt of its own")
        unit = F.normalize(self.personal.flatten(1).double(), dim=1)
        return unit @ unit.T

    def spectrum(self) -> Spectrum:
        """Singular values (K, min(L, D)) of the clients' own parts."""
        if self.personal is None:
            raise ValueError("no client has a prompt of its own")
        return spectrum(self.personal)


@dataclass(frozen=True)
class NearWord:
    """A context token and the words whose embeddings lie nearest."""

    token: int
    """place in the context, from 1"""
    words: tuple[str, ...]
    distances: tuple[float, ...]
    """Euclidean, as in the CoOp paper"""


def prompts(store: RunFolder) -> Prompts | None:
    """The contexts of a run; None: its method learns no context (zero-shot, adapters, pixels).

    Raises:
        RunError: the checkpoint is gone or cannot be read.
    """
    rounds = store.rounds()
    state = store.state_at(rounds[-1].round) if rounds else None
    if state is None or not {"ctx"} & (state.shared.keys() | state.personal.keys()):
        return None
    shared = state.shared.get("ctx")
    names = tuple(store.identity["client_names"])
    return Prompts(names, None if shared is None else _tokens(shared), _personal(state))


def near_words(store: RunFolder, context: Tensor, count: int = 4) -> list[NearWord]:
    """The words nearest to each token of a context (L, D).

    Raises:
        BackboneError: the run's backbone is not there, or is another one now.
    """
    settings = config.load(str(store.config_path)).backbone
    words, vectors = _words(settings, store.identity["weights_fingerprint"])
    distances = torch.cdist(context.float(), vectors)
    near, which = distances.topk(min(count, len(words)), largest=False)
    return [
        NearWord(number + 1, tuple(words[i] for i in row), tuple(values))
        for number, (row, values) in enumerate(zip(which.tolist(), near.tolist(), strict=True))
    ]


def _tokens(ctx: Tensor) -> Tensor:
    """Contexts (..., L, D) of several prompt sets, classes or layers, as one list of tokens."""
    return ctx.flatten(0, -2)


def _personal(state: State) -> Tensor | None:
    """What is each client's own, (K, L, D)."""
    own = state.personal
    for key in ("delta", "local", "ctx"):
        if key in own:
            return own[key].flatten(1, -2)
    return (own["U"] @ own["V"]).flatten(1, -2) if {"U", "V"} <= own.keys() else None


@functools.lru_cache(maxsize=2)
def _words(settings: BackboneSettings, fingerprint: str) -> tuple[list[str], Tensor]:
    """The words that are one token of a backbone (each token once), and their embeddings."""
    from open_clip.tokenizer import SimpleTokenizer

    backbone = model.load(settings)
    if backbone.fingerprint != fingerprint:
        raise BackboneError(f"backbone.weights: {settings.weights} are not those that the run was made with")
    pieces = {
        token: piece.removesuffix(WORD_END) for piece, token in SimpleTokenizer().encoder.items() if WORD_END in piece
    }
    if isinstance(backbone.tokenize, ReducedTokenizer):
        kept = backbone.tokenize.ids
        pieces = {kept[token]: word for token, word in pieces.items() if token in kept}
    found = {token: word for token, word in pieces.items() if word.isascii() and word.isalpha() and word.islower()}
    vectors = TextTower.from_open_clip(backbone.model).tokens[torch.tensor(list(found), dtype=torch.long)].float()
    return list(found.values()), vectors
