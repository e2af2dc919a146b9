"""What a run has learned: its prompts, the words nearest to them, and the spectra of their personal parts."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedpgp import config
from fedpgp.clip import model, tokens
from fedpgp.config import BackboneSettings
from fedpgp.core.errors import BackboneError, RunError
from fedpgp.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix (the last two axes of a stack)."""

    values: np.ndarray  # (..., min(M, N)), descending

    def energy(self, rank: int) -> np.ndarray:
        """Share (...) of the squared Frobenius norm in the best approximation of this rank; 0 for a zero matrix."""
        squares = np.square(self.values, dtype=np.float64)
        total = squares.sum(-1)
        found: np.ndarray = squares[..., :rank].sum(-1) / np.where(total > 0, total, 1)
        return found

    def effective_rank(self, share: float = 0.9) -> np.ndarray:
        """The smallest rank (...) with at least this share of the energy."""
        ranks = np.stack([self.energy(rank) for rank in range(1, self.values.shape[-1] + 1)], -1)
        found: np.ndarray = (ranks < share).sum(-1) + 1
        return found


def prompts(store: RunFolder) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read the shared context and the personal parts after the last round of a run.

    Returns:
        The token embeddings that the server holds (L, D), of deep prompts those of the first layer; and the personal
        parts (K, L, D): U V or delta of FedPGP, the local prompt of FedOTP, the context of CoOp. None for what the
        method does not have; zero-shot, adapters and pixels have neither.

    Raises:
        RunError: the checkpoint is missing or cannot be read.
    """
    rounds = store.rounds()
    state = store.state_at(rounds[-1].round, arrays=True) if rounds else None
    if state is None or "ctx" not in state.shared.keys() | state.personal.keys():
        return None, None
    common, own = _arrays(state.shared), _arrays(state.personal)
    shared = common.get("ctx")
    if shared is not None and "coupling.weight" in common:  # deep prompts (MaPLe): (J, L, D)
        shared = shared[0]  # the layers after the first have hidden states
    part = next((own[key] for key in ("delta", "local", "ctx") if key in own), added_prompt(own))
    # several prompts or classes are one list of tokens
    tokens_LD = None if shared is None else shared.reshape(-1, shared.shape[-1])
    return tokens_LD, None if part is None else part.reshape(len(part), -1, part.shape[-1])


def added_prompt(own: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What each client adds to the global prompt (K, N, L, D): a free matrix or U V; None for other methods."""
    if "delta" in own:
        return own["delta"]
    return own["U"] @ own["V"] if {"U", "V"} <= own.keys() else None


def similarity(parts: np.ndarray) -> np.ndarray:
    """Cosine similarities (K, K) of personal parts (K, L, D) as vectors; 0 to a part that is 0."""
    vectors = parts.reshape(len(parts), -1).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    found: np.ndarray = unit @ unit.T
    return found


def near_words(store: RunFolder, context: np.ndarray, count: int = 4) -> list[list[tuple[str, float]]]:
    """Find the words nearest to each token of a context (L, D), with their Euclidean distances as in the CoOp paper.

    Raises:
        BackboneError: the run's backbone is missing, or its weights have changed.
    """
    settings = config.load(str(store.config_path)).backbone
    words, vectors = _words(settings, store.identity["weights_fingerprint"])
    found = []
    for token in context.astype(np.float32):
        distances = np.linalg.norm(vectors - token, axis=1)
        nearest = np.argsort(distances, kind="stable")[:count]
        found.append([(words[i], float(distances[i])) for i in nearest])
    return found


def personal_parts(run: Path) -> Spectrum:
    """Singular values (K, N, min(L, D)) of each client's addition to the global prompt: U V, or a free matrix.

    Raises:
        RunError: the run has no such part, or no round.
    """
    store = RunFolder.open(run)
    rounds = store.rounds()
    if not rounds:
        raise RunError(f"{run}: no round is finished")
    state = store.state_at(rounds[-1].round, arrays=True)
    if (added := added_prompt(_arrays(state.personal))) is None:
        name = store.identity["method"]
        raise RunError(f"{run}: {name} adds no personal part to a global prompt; give a run of fedpgp or fedlora")
    return spectrum(added)


def spectrum(delta: np.ndarray) -> Spectrum:
    """Singular values of matrices (..., M, N), for example of personal parts of prompts (L, D)."""
    return Spectrum(np.linalg.svd(delta.astype(np.float64), compute_uv=False))


def _arrays(tree: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """What `RunFolder.state_at` loads with `arrays`."""
    return tree


@functools.lru_cache(maxsize=2)
def _words(settings: BackboneSettings, fingerprint: str) -> tuple[list[str], np.ndarray]:
    """The words that are a single token of the backbone, and their embeddings."""
    found = tokens.words()
    if settings.name == model.ICON_CLIP:
        kept = tokens.reduced_ids(model.ICON_CLIP_FOLDER)
        found = {kept[token]: word for token, word in found.items() if token in kept}
    return list(found.values()), _token_embeddings(settings, fingerprint)[list(found)]


def _token_embeddings(settings: BackboneSettings, fingerprint: str) -> np.ndarray:
    """The embeddings (V, D) of all tokens: of a file that has the weights, else of the model, which takes seconds."""
    stored = model.stored_arrays(settings, fingerprint)
    if stored is not None:
        return next(array for name, array in stored.items() if name.endswith("token_embedding.weight"))
    backbone = model.load(settings)
    if backbone.fingerprint != fingerprint:
        raise BackboneError(f"backbone.weights: {settings.weights} are not the weights of the run")
    text: Any = getattr(backbone.model, "text", backbone.model)
    found: np.ndarray = text.token_embedding.weight.detach().float().numpy()
    return found
