"""What a run has learned: prompts and the words nearest to them, and the analyses of the LoRA paper."""

import functools
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp import config
from fedpgp.clip import model, tokens
from fedpgp.clip.prompt_encoder import Target
from fedpgp.clip.towers import Block, TextTower
from fedpgp.config import BackboneSettings, Experiment
from fedpgp.core.errors import BackboneError, ConfigError, RunError
from fedpgp.core.seeding import torch_generator
from fedpgp.federation.state import State
from fedpgp.methods.fedlora import FedLoRA, FedLoRASettings
from fedpgp.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Overlap:
    """Projections of a frozen weight W on the directions of its change (Hu et al., 2022, table 7)."""

    delta: float
    """||U^T W V||_F with the top singular directions U, V of the change dW"""
    weight: float
    """the same with those of W itself: the upper bound"""
    random: float
    """the same with those of a random matrix: the value for unrelated directions"""
    weight_norm: float
    """||W||_F"""
    delta_norm: float
    """||dW||_F"""

    @property
    def amplification(self) -> float:
        """||dW||_F over ||U^T W V||_F: the factor by which the change amplifies its directions in W."""
        return self.delta_norm / self.delta


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix (the last two axes of a stack)."""

    values: Tensor  # (..., min(M, N)), descending

    def energy(self, rank: int) -> Tensor:
        """Share (...) of the squared Frobenius norm in the best approximation of this rank; 0 for a zero matrix."""
        squares = self.values.double().square()
        total = squares.sum(-1)
        return squares[..., :rank].sum(-1) / torch.where(total > 0, total, 1)

    def effective_rank(self, share: float = 0.9) -> Tensor:
        """The smallest rank (...) with at least this share of the energy."""
        ranks = torch.stack([self.energy(rank) for rank in range(1, self.values.shape[-1] + 1)], dim=-1)
        return (ranks < share).sum(-1) + 1


def prompts(store: RunFolder) -> tuple[Tensor | None, Tensor | None]:
    """Read the shared context and the personal parts after the last round of a run.

    Returns:
        The token embeddings that the server holds (L, D), of deep prompts those of the first layer; and the personal
        parts (K, L, D): U V or delta of FedPGP, the local prompt of FedOTP, the context of CoOp. None for what the
        method does not have; zero-shot, adapters and pixels have neither.

    Raises:
        RunError: the checkpoint is missing or cannot be read.
    """
    rounds = store.rounds()
    state = store.state_at(rounds[-1].round) if rounds else None
    if state is None or "ctx" not in state.shared.keys() | state.personal.keys():
        return None, None
    shared = state.shared.get("ctx")
    if shared is not None and "coupling.weight" in state.shared:  # deep prompts (MaPLe): (J, L, D)
        shared = shared[0]  # the layers after the first have hidden states
    own = state.personal
    part = next((own[key] for key in ("delta", "local", "ctx") if key in own), added_prompt(state))
    # several prompts or classes are one list of tokens
    return None if shared is None else shared.flatten(0, -2), None if part is None else part.flatten(1, -2)


def added_prompt(state: State) -> Tensor | None:
    """What each client adds to the global prompt (K, N, L, D): a free matrix or U V; None for other methods."""
    own = state.personal
    if "delta" in own:
        return own["delta"]
    return own["U"] @ own["V"] if {"U", "V"} <= own.keys() else None


def similarity(parts: Tensor) -> Tensor:
    """Cosine similarities (K, K) of personal parts (K, L, D) as vectors; 0 to a part that is 0."""
    unit = F.normalize(parts.flatten(1).double(), dim=1)
    return unit @ unit.T


def near_words(store: RunFolder, context: Tensor, count: int = 4) -> list[list[tuple[str, float]]]:
    """Find the words nearest to each token of a context (L, D), with their Euclidean distances as in the CoOp paper.

    Raises:
        BackboneError: the run's backbone is missing, or its weights have changed.
    """
    settings = config.load(str(store.config_path)).backbone
    words, vectors = _words(settings, store.identity["weights_fingerprint"])
    distances = torch.cdist(context.float(), vectors)
    near, which = distances.topk(min(count, len(words)), largest=False)
    return [
        [(words[i], distance) for i, distance in zip(row, values, strict=True)]
        for row, values in zip(which.tolist(), near.tolist(), strict=True)
    ]


def has_adapters(run: Path) -> bool:
    """Whether `adapters` can analyze the run; otherwise use `personal_parts`."""
    return config.load(str(RunFolder.open(run).config_path)).method.name == FedLoRA.name


def adapters(run: Path, rank: int | None = None) -> dict[str, Overlap]:
    """Compare the change dW of each target with W: means over the layers, and over the clients if personal.

    Args:
        rank: number of singular directions; None: the adapters' rank.

    Raises:
        RunError: not a run of fedlora, or without a round.
        ConfigError: a rank that the weights cannot have.
        BackboneError: the weights are not those of the run.
    """
    experiment, store, state = _read(run)
    if experiment.method.name != FedLoRA.name:
        raise RunError(f"{run}: {experiment.method.name} has no adapters that can be analyzed; give a run of fedlora")
    method = FedLoRA(FedLoRASettings.model_validate(experiment.method.settings))
    backbone = model.load(experiment.backbone)
    if backbone.fingerprint != store.identity["weights_fingerprint"]:
        raise BackboneError(f"{run}: the weights of {experiment.backbone.name} are not the weights of the run")
    tower = TextTower.from_open_clip(backbone.model)
    width, most = rank or method.settings.rank, tower.width
    if not 1 <= width <= most:
        raise ConfigError(f"--rank: {width}: the weights have 1 to {most} singular directions")
    params = state.personal or {key: value.unsqueeze(0) for key, value in state.shared.items()}
    found: dict[str, Overlap] = {}
    for target, (down, up) in method.adapters(params).items():
        changes = (up @ down).flatten(0, 1)  # (K layers, D, D), layers fastest
        weights = [_weight(block, target) for block in tower.blocks] * len(down)
        generator = torch_generator(0, "anatomy", target)
        parts = [overlap(weight, delta, width, generator) for weight, delta in zip(weights, changes, strict=True)]
        found[target] = Overlap(*(fmean(values) for values in zip(*map(astuple, parts), strict=True)))
    return found


def personal_parts(run: Path) -> Spectrum:
    """Singular values (K, N, min(L, D)) of each client's addition to the global prompt: U V, or a free matrix.

    Raises:
        RunError: the run has no such part, or no round.
    """
    experiment, _, state = _read(run)
    if (added := added_prompt(state)) is None:
        name = experiment.method.name
        raise RunError(f"{run}: {name} adds no personal part to a global prompt; give a run of fedpgp or fedlora")
    return spectrum(added)


def overlap(weight: Tensor, delta: Tensor, rank: int, generator: torch.Generator) -> Overlap:
    """Project W (M, N) on the top-`rank` singular directions of dW, of W and of a matrix that `generator` draws.

    Raises:
        ValueError: different shapes, or a rank that they cannot have.
    """
    if weight.shape != delta.shape or not 1 <= rank <= min(weight.shape):
        given = f"weight {tuple(weight.shape)}, delta {tuple(delta.shape)}"
        raise ValueError(f"{given}: need matrices of one shape that can have rank {rank}")
    weight, delta = weight.double(), delta.double()
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return Overlap(
        delta=_projected(weight, delta, rank),
        weight=_projected(weight, weight, rank),
        random=_projected(weight, noise, rank),
        weight_norm=float(weight.norm()),
        delta_norm=float(delta.norm()),
    )


def spectrum(delta: Tensor) -> Spectrum:
    """Singular values of matrices (..., M, N), for example of personal parts of prompts (L, D)."""
    return Spectrum(torch.linalg.svdvals(delta.double()))


def _read(run: Path) -> tuple[Experiment, RunFolder, State]:
    store = RunFolder.open(run)
    rounds = store.rounds()
    if not rounds:
        raise RunError(f"{run}: no round is finished")
    return config.load(str(store.config_path)), store, store.state_at(rounds[-1].round)


def _weight(block: Block, target: Target) -> Tensor:
    """Weight W (D, D) of a projection of attention."""
    if target == "o":
        return block.out.weight
    width = block.qkv.weight.shape[1]
    return block.qkv.rows("qkv".index(target) * width, ("qkv".index(target) + 1) * width).weight


def _projected(weight: Tensor, directions: Tensor, rank: int) -> float:
    """||U^T W V||_F."""
    u, _, vh = torch.linalg.svd(directions, full_matrices=False)
    return float((u[:, :rank].T @ weight @ vh[:rank].T).norm())


@functools.lru_cache(maxsize=2)
def _words(settings: BackboneSettings, fingerprint: str) -> tuple[list[str], Tensor]:
    """The words that are a single token of the backbone, and their embeddings."""
    found = tokens.words()
    if settings.name == model.ICON_CLIP:
        kept = tokens.reduced_ids(model.ICON_CLIP_FOLDER)
        found = {kept[token]: word for token, word in found.items() if token in kept}
    return list(found.values()), _token_embeddings(settings, fingerprint)[list(found)].float()


def _token_embeddings(settings: BackboneSettings, fingerprint: str) -> Tensor:
    """The embeddings (V, D) of all tokens: of a file that has the weights, else of the model, which takes seconds."""
    stored = model.stored_tensors(settings, fingerprint)
    if stored is not None:
        return next(tensor for name, tensor in stored.items() if name.endswith("token_embedding.weight"))
    backbone = model.load(settings)
    if backbone.fingerprint != fingerprint:
        raise BackboneError(f"backbone.weights: {settings.weights} are not the weights of the run")
    return TextTower.from_open_clip(backbone.model).tokens
