"""Analyses of the LoRA paper for a run: adapters against their weights, and the spectrum of personal prompts."""

from pathlib import Path
from statistics import fmean

from torch import Tensor

from fedpgp import config
from fedpgp.analysis.prompts import added_prompt
from fedpgp.analysis.spectra import Overlap, Spectrum, overlap, spectrum
from fedpgp.clip import model
from fedpgp.clip.prompt_encoder import Target
from fedpgp.clip.towers import Block, TextTower
from fedpgp.config import Experiment
from fedpgp.core.errors import BackboneError, ConfigError, RunError
from fedpgp.core.seeding import torch_generator
from fedpgp.federation.state import State
from fedpgp.methods.fedlora import FedLoRA, FedLoRASettings
from fedpgp.storage.run_folder import RunFolder

FIELDS = ("delta", "weight", "random", "weight_norm", "delta_norm")


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
        found[target] = Overlap(*(fmean(getattr(part, field) for part in parts) for field in FIELDS))
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


def has_adapters(run: Path) -> bool:
    """Whether `adapters` can analyze the run; otherwise use `personal_parts`."""
    return config.load(str(RunFolder.open(run).config_path)).method.name == FedLoRA.name


def _read(run: Path) -> tuple[Experiment, RunFolder, State]:
    store = RunFolder.open(run)
    rounds = store.rounds()
    if not rounds:
        raise RunError(f"{run}: no round is finished")
    experiment = config.load(str(store.config_path))
    return experiment, store, store.state_at(rounds[-1].round)


def _weight(block: Block, target: Target) -> Tensor:
    """Weight W (D, D) of a projection of attention."""
    if target == "o":
        return block.out.weight
    width = block.qkv.weight.shape[1]
    return block.qkv.rows("qkv".index(target) * width, ("qkv".index(target) + 1) * width).weight
