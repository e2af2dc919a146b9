"""Settings of rounds: local training, the server rule, attackers, absent clients, and differential privacy."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedpgp.config.base import Named, Settings


class ServerSettings(Named):
    """The server rule: its name and its keys."""

    name: str = "fedavg"
    """see `fedpgp methods --server`, or MODULE:CLASS, a rule in a file of yours"""


class AttackSettings(Settings):
    """Clients that send something else than they have learned."""

    kind: Literal["sign_flip", "gaussian", "label_flip", "same_value"]
    """sign_flip (the update times -scale) | gaussian (noise instead of the update) | same_value (an update whose values
    are all the same) | label_flip (trains with label C - 1 - y)"""
    fraction: float = Field(gt=0, lt=1)
    """share of the clients that attack, a seeded choice for the whole run: rounded to the nearest number, at least one,
    and never all"""
    scale: float = Field(4.0, gt=0)
    """length of the false update; 1: that of the one that was learned. label_flip has none"""
    start_round: int = Field(1, ge=1)
    """first round in which they attack"""

    @model_validator(mode="after")
    def _used(self) -> AttackSettings:
        if self.kind == "label_flip" and self.scale != type(self).model_fields["scale"].default:
            raise ValueError("scale has no effect with kind label_flip")
        return self


class FederationSettings(Settings):
    """Rounds, local training and evaluation."""

    rounds: int = Field(10, ge=1)
    """communication rounds"""
    local_epochs: int = Field(2, ge=1)
    """epochs of a client in a round"""
    local_steps: int | None = Field(None, ge=1)
    """batches of a client in a round, the first of a new order, instead of local epochs; null: local_epochs"""
    batch_size: int = Field(32, ge=1)
    """images per step and client"""
    drop_last: bool = False
    """true: skip a smaller last batch if the client has a full one (like the authors' code)"""
    participation: float = Field(1.0, gt=0, le=1)
    """fraction of the clients that ever train that take part in a round, sampled each round"""
    sampling: Literal["fixed", "poisson"] = "fixed"
    """fixed (the same number of clients in every round) | poisson (each client with probability participation)"""
    everyone_first: bool = False
    """true: all clients train in the first round, regardless of participation (like the authors' code)"""
    lr: float = Field(0.001, gt=0)
    """learning rate of SGD, the largest of its schedule"""
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    """constant | cosine (to 0 at the end of the run) | step (times lr_step_factor every lr_step_rounds rounds)"""
    lr_schedule_per: Literal["round", "step"] = "round"
    """round: one learning rate for all local steps of a round | step: one for each local step"""
    lr_warmup_rounds: int = Field(0, ge=0)
    """rounds in which the learning rate grows linearly to lr, times the schedule; 0: none"""
    lr_step_rounds: int = Field(10, ge=1)
    """step: rounds between two reductions"""
    lr_step_factor: float = Field(0.1, gt=0, le=1)
    """step: factor of a reduction; 1: constant"""
    momentum: float = Field(0.9, ge=0, lt=1)
    """momentum of SGD; 0: none. It starts at 0 in each local update, unless `keep_momentum`"""
    keep_momentum: bool = False
    """true: each client keeps its optimizer's momentum from one participation to the next (fine-tuning and clients that
    never train start at 0)"""
    weight_decay: float = Field(5e-4, ge=0)
    """weight decay of SGD; 0: none"""
    block_size: int = Field(10, ge=1)
    """clients trained as one batch; the unit of work of an actor"""
    eval_every: int = Field(1, ge=1)
    """rounds between evaluations; the last round is always evaluated"""
    eval_clients: int | None = Field(None, ge=1)
    """most clients tested in an evaluation, a seeded choice of each round, and as many of those that never train; rows
    and means are theirs. null: all"""
    chunk_size: int | None = Field(None, ge=1)
    """clients of a block trained at once, to limit memory; null: the whole block"""
    policy: Literal["fail", "exclude", "clip"] = "fail"
    """for a client with a non-finite loss or too large an update: fail the run | exclude it | clip the update"""
    max_update_norm: float | None = Field(None, gt=0)
    """maximum Euclidean norm of an update of the shared parameters; null: unlimited"""
    finetune_epochs: int = Field(0, ge=0)
    """local epochs on a temporary copy of each client's model before it is tested; 0: none"""
    evaluate_before_aggregation: bool = False
    """true: also test each honest participant whose update counts right after local training
    (`local_before_aggregation`)"""
    evaluate_global: bool = False
    """true: also test the server's parameters without personal parts (`local_global`, `base_global`, ...); with
    partition.unseen_clients they are tested on test images anyway"""
    server: ServerSettings = ServerSettings.model_validate({"name": "fedavg", "lr": 1.0})
    """the server rule, which turns what clients send into the next shared parameters"""
    attack: AttackSettings | None = None
    """clients that attack; null: none"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """share of a round's clients that are lost after local training, each with this probability: their update does not
    arrive; 0: none"""
    dropout_keeps_personal: bool = True
    """true: a lost client keeps the personal parameters that it has trained; false: those from before"""
    straggler: float = Field(0.0, ge=0, le=1)
    """share of a round's clients, each with this probability, that do only 1 to local_epochs - 1 epochs; 0: none"""
    new_client_epochs: int = Field(5, ge=0)
    """local epochs, on a temporary copy, of a client that never trains (partition.unseen_clients) before it is tested a
    second time (`new_client/local_adapted`, ...); 0: no second test"""

    @model_validator(mode="after")
    def _used(self) -> FederationSettings:
        def given(key: str) -> bool:
            return bool(getattr(self, key) != type(self).model_fields[key].default)

        by_step = self.lr_schedule == "cosine" or self.lr_warmup_rounds > 0
        for key, effective, needed in (
            ("lr_step_rounds", self.lr_schedule == "step", "lr_schedule=step"),
            ("lr_step_factor", self.lr_schedule == "step", "lr_schedule=step"),
            ("lr_schedule_per", by_step, "lr_schedule=cosine, or lr_warmup_rounds"),
            (
                "straggler",
                self.local_epochs > 1 and self.local_steps is None,
                "local_epochs=2 or more, local_steps=null",
            ),
            ("local_epochs", self.local_steps is None, "local_steps=null"),
            ("dropout_keeps_personal", self.dropout > 0, "dropout above 0"),
            ("keep_momentum", self.momentum > 0, "momentum above 0"),
        ):
            if given(key) and not effective:
                raise ValueError(f"{key} has no effect; it needs {needed}")
        if self.lr_warmup_rounds > self.rounds:
            raise ValueError(f"lr_warmup_rounds={self.lr_warmup_rounds} is above rounds={self.rounds}")
        if self.attack is not None and self.attack.start_round > self.rounds:
            raise ValueError(f"attack.start_round={self.attack.start_round} is above rounds={self.rounds}")
        return self

    @model_validator(mode="after")
    def _sampling_in_every_round(self) -> FederationSettings:
        if self.everyone_first and self.sampling == "poisson":
            raise ValueError("everyone_first is for sampling=fixed: with poisson each client is drawn by itself")
        return self


class PrivacySettings(Settings):
    """Differential privacy of the shared parameters."""

    level: Literal["none", "client"] = "none"
    """none | client (DP-FedAvg: hides a client with all its images; every client counts alike)"""
    clip_norm: float = Field(1.0, gt=0)
    """longest update of a client (Euclidean norm over all shared parameters); longer ones are scaled to it"""
    noise_multiplier: float | None = Field(None, ge=0)
    """standard deviation of the noise on the sum of the updates, divided by clip_norm; 0: clipping alone; null: the
    least one that epsilon allows"""
    epsilon: float | None = Field(None, gt=0)
    """budget of all rounds together, which needs delta; null: none"""
    delta: float | None = Field(None, gt=0, lt=1)
    """probability with which epsilon may not hold, less than 1 / clients that train; null: their number^-1.1"""
    adaptive_clip: bool = False
    """true: clip_norm is only the start, and follows the median length of updates (Andrew et al., 2021)"""
    where: Literal["server", "client"] = "server"
    """who adds the noise: the server, to the sum | each client, its part, to its own update"""
    accounting: Literal["fixed", "poisson"] | None = None
    """sampling of clients that the accountant assumes; null: federation.sampling, which it must be"""

    @model_validator(mode="after")
    def _complete(self) -> PrivacySettings:
        given = [key for key, field in type(self).model_fields.items() if getattr(self, key) != field.default]
        if self.level == "none" and given:
            raise ValueError(f"{given[0]} has no effect with level=none; give level=client")
        if self.level == "client" and self.noise_multiplier is None and self.epsilon is None:
            raise ValueError("level=client needs noise_multiplier, or epsilon and delta")
        if self.epsilon is not None and self.delta is None:
            raise ValueError("epsilon needs delta, less than 1 / clients")
        return self
