"""The learned prompts in a run's last checkpoint, and the words nearest to them."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp import config
from fedpgp.analysis.spectra import Spectrum, spectrum
from fedpgp.clip import model
from fedpgp.clip.towers import TextTower
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError
from fedpgp.federation.state import State
from fedpgp.storage.run_folder import RunFolder

WORD_END = "</w>"
"""How CLIP's byte-pair encoding marks the end of a word."""
COUPLING = "coupling.weight"
"""Parameter of deep prompts (MaPLe). Their context is (J, L, D): the layers after the first have hidden states."""


@dataclass(frozen=True)
class Prompts:
    """The contexts of a run after its last round."""

    names: tuple[str, ...]
    """of the clients"""
    shared: Tensor | None
    """token embeddings that the server holds (L, D), of deep prompts those of the first layer; None: none is shared"""
    personal: Tensor | None
    """personal parts (K, L, D): U V or delta of FedPGP, the local prompt of FedOTP, the context of CoOp"""

    def similarity(self) -> Tensor:
        """Cosine similarities (K, K) of the personal parts as vectors; 0 to a part that is 0."""
        unit = F.normalize(self._personal().flatten(1).double(), dim=1)
        return unit @ unit.T

    def spectrum(self) -> Spectrum:
        """Singular values (K, min(L, D)) of the personal parts."""
        return spectrum(self._personal())

    def _personal(self) -> Tensor:
        if self.personal is None:
            raise ValueError("the method has no personal prompts")
        return self.personal


@dataclass(frozen=True)
class NearWords:
    """A context token and the words with the nearest embeddings."""

    token: int
    """position in the context, from 1"""
    words: tuple[str, ...]
    distances: tuple[float, ...]
    """Euclidean, as in the CoOp paper"""


def prompts(store: RunFolder) -> Prompts | None:
    """Read the contexts of a run; None if its method learns no context (zero-shot, adapters, pixels).

    Raises:
        RunError: the checkpoint is missing or cannot be read.
    """
    rounds = store.rounds()
    state = store.state_at(rounds[-1].round) if rounds else None
    if state is None or not {"ctx"} & (state.shared.keys() | state.personal.keys()):
        return None
    shared = state.shared.get("ctx")
    names = tuple(store.identity["client_names"])
    if shared is not None and COUPLING in state.shared:
        shared = shared[0]
    return Prompts(names, None if shared is None else shared.flatten(0, -2), _personal(state))


def added_prompt(state: State) -> Tensor | None:
    """What each client adds to the global prompt (K, N, L, D): a free matrix or U V; None for other methods."""
    own = state.personal
    if "delta" in own:
        return own["delta"]
    return own["U"] @ own["V"] if {"U", "V"} <= own.keys() else None


def near_words(store: RunFolder, context: Tensor, count: int = 4) -> list[NearWords]:
    """Find the words nearest to each token of a context (L, D).

    Raises:
        BackboneError: the run's backbone is missing, or its weights have changed.
    """
    settings = config.load(str(store.config_path)).backbone
    words, vectors = _words(settings, store.identity["weights_fingerprint"])
    distances = torch.cdist(context.float(), vectors)
    near, which = distances.topk(min(count, len(words)), largest=False)
    return [
        NearWords(number + 1, tuple(words[i] for i in row), tuple(values))
        for number, (row, values) in enumerate(zip(which.tolist(), near.tolist(), strict=True))
    ]


def _personal(state: State) -> Tensor | None:
    """The personal parts (K, L, D), with several prompts or classes as one list of tokens."""
    own = state.personal
    part = next((own[key] for key in ("delta", "local", "ctx") if key in own), added_prompt(state))
    return None if part is None else part.flatten(1, -2)


@functools.lru_cache(maxsize=2)
def _words(settings: BackboneSettings, fingerprint: str) -> tuple[list[str], Tensor]:
    """The words that are a single token of the backbone, and their embeddings."""
    from open_clip.tokenizer import SimpleTokenizer

    backbone = model.load(settings)
    if backbone.fingerprint != fingerprint:
        raise BackboneError(f"backbone.weights: {settings.weights} are not the weights of the run")
    pieces = {
        token: piece.removesuffix(WORD_END) for piece, token in SimpleTokenizer().encoder.items() if WORD_END in piece
    }
    if isinstance(backbone.tokenize, model.ReducedTokenizer):
        kept = backbone.tokenize.ids
        pieces = {kept[token]: word for token, word in pieces.items() if token in kept}
    found = {token: word for token, word in pieces.items() if word.isascii() and word.isalpha() and word.islower()}
    vectors = TextTower.from_open_clip(backbone.model).tokens[torch.tensor(list(found), dtype=torch.long)].float()
    return list(found.values()), vectors
