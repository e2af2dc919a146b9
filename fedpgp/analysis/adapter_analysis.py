"""What a run has learned, asked LoRA's questions: adapters against their weights, personal parts of prompts."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from torch import Tensor

from fedpgp import config, methods
from fedpgp.analysis.spectra import Overlap, Spectrum, overlap, spectrum
from fedpgp.clip import model
from fedpgp.clip.adapters import Target
from fedpgp.clip.text_tower import Block, TextTower
from fedpgp.config import Experiment
from fedpgp.core.errors import BackboneError, ConfigError, RunError
from fedpgp.core.seeding import torch_generator
from fedpgp.federation.state import State
from fedpgp.methods.fedlora import FedLoRA
from fedpgp.storage.run_folder import RunFolder

FIELDS = ("delta", "weight", "random", "weight_norm", "delta_norm")


def adapters(run: Path, rank: int | None = None) -> dict[str, Overlap]:
    """Each target's change dW of a LoRA run against W: means over the layers, and over the clients if personal.

    Args:
        rank: number of singular directions; None: the adapters' rank.

    Raises:
        RunError: not a run of LoRA, or without a round.
        ConfigError: a rank that the weights cannot have.
        BackboneError: the weights are not those of the run.
    """
    experiment, store, state = _read(run)
    method = methods.create(experiment.method.name, experiment.method.settings)
    if not isinstance(method, FedLoRA):
        raise RunError(f"{run}: {method.name} has no adapters; this is of runs of fedlora")
    backbone = model.load(experiment.backbone)
    if backbone.fingerprint != store.identity["weights_fingerprint"]:
        raise BackboneError(f"{run}: made with other weights than {experiment.backbone.name} has now")
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
        found[target] = Overlap(*(fmean(getattr(part, field) for part in parts) for field in FIELDS))
    return found


def personal_parts(run: Path) -> Spectrum:
    """Singular values (K, N, min(L, D)) of what each client adds to the global prompt: U V, or a free matrix.

    Raises:
        RunError: the run has no such part, or no round.
    """
    _, _, state = _read(run)
    personal = state.personal
    if "delta" not in personal and not {"U", "V"} <= personal.keys():
        raise RunError(f"{run}: its method adds nothing personal to a global prompt; this is of runs of fedpgp")
    return spectrum(personal["delta"] if "delta" in personal else personal["U"] @ personal["V"])


def has_adapters(run: Path) -> bool:
    """Whether `adapters` is the question to ask, or else `personal_parts`."""
    return config.load(str(RunFolder.open(run).config_path)).method.name == FedLoRA.name


def _read(run: Path) -> tuple[Experiment, RunFolder, State]:
    store = RunFolder.open(run)
    rounds = store.rounds()
    if not rounds:
        raise RunError(f"{run}: no round has been done")
    experiment = config.load(str(store.config_path))
    return experiment, store, store.state_at(rounds[-1].round)


def _weight(block: Block, target: Target) -> Tensor:
    """W (D, D) of a projection of attention."""
    if target == "o":
        return block.out.weight
    width = block.qkv.weight.shape[1]
    return block.qkv.rows("qkv".index(target) * width, ("qkv".index(target) + 1) * width).weight
