"""Compare the adapters of a run with the weights that they change, as the LoRA paper does."""

from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from fedpgp import config
from fedpgp.clip import model
from fedpgp.clip.prompt_encoder import Target
from fedpgp.clip.towers import Block, TextTower
from fedpgp.config import Experiment
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
    params = dict(state.personal) or {key: value.unsqueeze(0) for key, value in state.shared.items()}
    found: dict[str, Overlap] = {}
    for target, (down, up) in method.adapters(params).items():
        changes = (up @ down).flatten(0, 1)  # (K layers, D, D), layers fastest
        weights = [_weight(block, target) for block in tower.blocks] * len(down)
        generator = torch_generator(0, "anatomy", target)
        parts = [overlap(weight, delta, width, generator) for weight, delta in zip(weights, changes, strict=True)]
        found[target] = Overlap(*(fmean(values) for values in zip(*map(astuple, parts), strict=True)))
    return found


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
