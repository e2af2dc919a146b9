"""The server: rounds of client sampling, local training, averaging and evaluation, each a step from state to state."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import overload

import numpy as np
import pyarrow as pa
import torch

from fedpgp.core.seeding import torch_generator
from fedpgp.core.tree import ParamTree, num_bytes, select, without
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.client import expected_steps, initial_momentum
from fedpgp.federation.client_rows import IN_MEMORY, ClientRows, FirstRows, InMemory, Place
from fedpgp.federation.cohorts import block_size, blocks, sample_clients, sample_tested, training_blocks
from fedpgp.federation.measures import pooled_table
from fedpgp.federation.messages import Arrays, Call, Counts, TrainResult, to_arrays
from fedpgp.federation.metrics import (
    CLIENT_SCHEMA,
    RoundRow,
    confusion_table,
    count_tables,
    joined_parts,
    round_metrics,
    train_tables,
)
from fedpgp.federation.state import Stack, State, add, average
from fedpgp.federation.tested import Tested
from fedpgp.federation.usage import Usage, measured, of_round
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import DiffersByClient, FinishesRound
from fedpgp.server_rules.base import ClientHalf, Received, SendsToEach

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundResult:
    """The result of a round."""

    state: State
    row: RoundRow
    clients: pa.Table  # metrics.CLIENT_SCHEMA
    pooled: pa.Table  # measures.POOLED_SCHEMA
    changed: np.ndarray  # clients whose personal parameters changed
    confusion: pa.Table | None = None  # metrics.CONFUSION_SCHEMA, of the last round


class Server:
    """Computes the next state of a federation from the current one; workers do the heavy work.

    The personal parameters of 10,000 clients take hundreds of MB, so a step writes them into the state that it was
    given once all results of the round have arrived. That state must not be used afterwards.

    Args:
        place: where the rows of the clients are held.
    """

    def __init__(self, job: FederationJob, backend: Backend, place: Place = IN_MEMORY) -> None:
        self.job = job
        self.backend = backend
        self.place = place
        self.rounds = job.federation.rounds if job.method.phases else 0
        self.block_size = block_size(job.method, job.federation)
        self.honest = np.setdiff1d(job.data.training_clients, job.attackers)  # accuracies are theirs
        self._tested = Tested()
        self.steps = expected_steps(np.array([len(own) for own in job.data.train_rows]), job.federation)

    def initial_state(self) -> State:
        """The state of round 0: all clients start from the same parameters, a function of the seed."""
        job = self.job
        frozen = job.text.on(job.data.class_sets[job.data.train_set])
        tree = job.method.init(frozen, torch_generator(job.seed, "init"))
        shared, clients = select(tree, job.method.shared_keys), job.data.num_clients
        kept = job.rule.init_kept(shared) if isinstance(job.rule, ClientHalf) else {}
        if job.federation.keep_momentum:
            kept = initial_momentum(job.method, tree)
        personal_of = job.method.personal_of if isinstance(job.method, DiffersByClient) else None
        firsts = FirstRows(without(tree, shared), personal_of), FirstRows(kept)
        personal_rows, kept_rows = self.place.hold(clients, *firsts)
        private = job.privacy.initial() if job.privacy else {}
        return State(0, shared, personal_rows, job.rule.init(shared, clients), kept_rows, private)

    def memory(self, state: State) -> int | None:
        """Bytes that a worker needs to train a block, as one of them measures; None: nothing is trained."""
        if not self.rounds:
            return None
        calls, common, _ = self._calls(state, 1, blocks(np.arange(self.job.data.num_clients), self.block_size)[:1])
        (size,) = self.backend.map("memory", calls, common)
        return int(size)

    def run(self, state: State) -> Iterator[RoundResult]:
        """Run the rounds after `state`. A method without training has one result, round 0."""
        if not self.rounds and state.round == 0:
            seconds: dict[str, float] = {}
            with _timed(seconds, "evaluate"):
                counts, confusion = self._evaluate(state, last=True)
            yield self._result(state, [], counts, confusion, np.arange(0), seconds)
        for _ in range(state.round, self.rounds):
            result = self.step(state)
            yield result
            state = result.state

    def step(self, state: State) -> RoundResult:
        """Run one round."""
        with measured() as driver:
            result, work = self._round(state)
        return replace(result, row=replace(result.row, system=of_round(driver, work)))

    def _round(self, state: State) -> tuple[RoundResult, list[Usage]]:
        """The result of the next round, and what each worker used for each block of it."""
        federation, number, clients = self.job.federation, state.round + 1, self.job.data.training_clients
        seconds: dict[str, float] = {}
        sampled = clients[sample_clients(self.job.seed, number, len(clients), federation)]
        with _timed(seconds, "train"):
            results, total, stacked, down = self._train(state, number, sampled)
        with _timed(seconds, "aggregate"):
            private = self.job.privacy.spent(state, number) if self.job.privacy else {}
            state = self._aggregate(state, results, total, stacked)
        counts = [part for result in results for part in result.before_aggregation]
        last, confusion = number == self.rounds, None
        if number % federation.eval_every == 0 or last:
            with _timed(seconds, "evaluate"):
                evaluated, confusion = self._evaluate(state, last)
            counts += evaluated
        result = self._result(state, results, counts, confusion, sampled, seconds, down, private)
        return result, [one.usage for one in results]

    def _result(
        self,
        state: State,
        results: Sequence[TrainResult],
        counts: Sequence[Counts],
        confusion: pa.Table | None,
        trained: np.ndarray,
        seconds: dict[str, float],
        bytes_down: int = 0,
        more: Mapping[str, float] = MappingProxyType({}),
    ) -> RoundResult:
        tables = [CLIENT_SCHEMA.empty_table(), *train_tables(state.round, results)]
        for part in counts:
            tables += count_tables(state.round, part, self.job.data.domains)
        order = [(column, "ascending") for column in ("split", "metric", "domain", "client")]
        clients = pa.concat_tables(tables)
        if part_of := self.job.data.part_of:
            clients = joined_parts(clients)
        clients = clients.sort_by(order)  # independent of the blocks
        pooled = pooled_table(state.round, counts, self.job.data)
        row = RoundRow(
            round=state.round,
            metrics={**round_metrics(clients, pooled, part_of), **more},
            participants=len(trained),
            bytes_up=sum(result.bytes_up for result in results),
            bytes_down=bytes_down,
            seconds=seconds,
            timestamp_ms=time.time_ns() // 1_000_000,
        )
        return RoundResult(state, row, clients, pooled, trained, confusion)

    def _calls(
        self, state: State, number: int, parts: Sequence[np.ndarray], *, confusion: bool = False
    ) -> tuple[Sequence[Call], Arrays, int]:
        """A call for each block of clients, what the server sends to all of them, and the bytes that it sends."""
        clip_norm = self.job.privacy.clip_norm_of(state) if self.job.privacy else inf
        calls, everyone, bytes_down = [], to_arrays(state.shared), 0
        for block in parts:
            common, own = self.job.rule.broadcast(state.server, state.shared, block)
            everyone, sent = to_arrays(common), to_arrays(own)
            alone = self.job.rule.sent_bytes(own) if isinstance(self.job.rule, SendsToEach) else num_bytes(own)
            bytes_down += num_bytes(without(common, own)) * len(block) + alone
            calls.append(Call(number, block, {}, {}, sent, clip_norm, confusion))
        return _WithRows(calls, state), everyone, bytes_down

    def _train(
        self, state: State, number: int, sampled: np.ndarray
    ) -> tuple[list[TrainResult], ParamTree, ParamTree, int]:
        """Results of the blocks without what the clients send; the total of that, the stack of it (M, ...), bytes down.

        Total and stack are filled as the results arrive.
        """
        parts = training_blocks(sampled, self.block_size, self.steps[sampled])
        calls, common, bytes_down = self._calls(state, number, parts)
        results: list[TrainResult] = []
        total: ParamTree = {}
        stacked = Stack(sampled)
        for result in self.backend.map("train", calls, common, [int(self.steps[part].sum()) for part in parts]):
            add(total, result.total)
            stacked.add(result.clients[result.accepted], result.stack)
            results.append(replace(result, total={}, stack={}))
        return results, total, stacked.filled(), bytes_down

    def _aggregate(self, state: State, results: Sequence[TrainResult], total: ParamTree, stacked: ParamTree) -> State:
        """The next state: the rule's for the shared parameters; those of each client are written back in place."""
        number = state.round + 1
        for result in results:
            state.personal.write(number, result.clients, result.personal)
            state.kept.write(number, result.clients, result.kept)
        clients = np.concatenate([np.arange(0), *(result.clients[result.accepted] for result in results)])
        weights = np.concatenate([np.arange(0), *(result.weights[result.accepted] for result in results)])
        order = clients.argsort()
        clients, weights = clients[order], weights[order]
        private = state.privacy
        if self.job.privacy is not None:
            votes = sum(result.votes for result in results)
            generator = torch_generator(self.job.seed, "noise", number)
            mean, private = self.job.privacy.release(total, votes, state, generator)
            clients = weights = np.arange(0)
        elif len(weights) >= self.job.rule.fewest:
            mean = average([total], float(weights.sum()), like=state.shared)
        else:
            found = f"{len(weights)} updates arrived and the server rule needs {self.job.rule.fewest}"
            none = "every client was lost or excluded" if results else "no client was sampled"
            what = found if len(weights) else none
            log.warning("round %d: %s; the shared parameters are unchanged", number, what)
            return replace(state, round=number)
        received = Received(
            clients=clients,
            weights=torch.from_numpy(weights).double(),
            mean=mean,
            stack=stacked,
            num_clients=len(self.job.data.training_clients),
            generator=torch_generator(self.job.seed, "server", number),
        )
        server, shared = self.job.rule.aggregate(state.server, state.shared, received)
        if isinstance(self.job.method, FinishesRound):
            _finish(self.job.method, state.personal, shared, results, number)
        return State(number, shared, state.personal, server, state.kept, private)

    def _evaluate(self, state: State, last: bool) -> tuple[list[Counts], pa.Table | None]:
        """Counts of honest clients and of those that never train; after the last round also confusion matrices."""
        if not self.job.data.evaluation_sets:
            return [], confusion_table({}) if last else None
        state = replace(state, kept=InMemory({}))  # which no model needs
        honest, unseen = (
            sample_tested(self.job.seed, state.round, clients, self.job.federation.eval_clients, group)
            for group, clients in (("honest", self.honest), ("unseen", np.array(self.job.data.unseen_clients)))
        )
        # Without personal parameters all clients have one model, so one call is enough, unless each is fine-tuned.
        personalised = self.job.rule.broadcast(state.server, state.shared, honest[:1])[1]
        finetuned = self.job.federation.finetune_epochs
        parts = blocks(honest, self.block_size) if state.personal or personalised or finetuned else [honest]
        counts: list[Counts] = []
        matrices: dict[tuple[str, str, tuple[int, ...]], np.ndarray] = {}

        def evaluated(parts: Sequence[np.ndarray]) -> Iterator[list[Counts]]:
            calls, common, _ = self._calls(state, state.round, parts, confusion=last)
            return self.backend.map("evaluate", calls, common)

        alone = not (state.shared or personalised or finetuned or last)  # confusion matrices are counted once
        for result in self._tested.counts(parts, state.personal, evaluated) if alone else evaluated(parts):
            for part in result:
                if part.confusion is not None:
                    key = (part.split, part.metric, part.pooled.labels)
                    matrices[key] = matrices.get(key, 0) + part.confusion
                counts.append(replace(part, confusion=None))
        calls, common, _ = self._calls(state, state.round, blocks(unseen, self.block_size))
        for result in self.backend.map("evaluate_new", calls, common) if calls else ():
            counts += result
        return counts, confusion_table(matrices) if last else None


class _WithRows(Sequence[Call]):
    """Calls that get the clients' rows when they are sent: those of all clients may not fit into memory."""

    def __init__(self, calls: Sequence[Call], state: State) -> None:
        self._calls, self._state = calls, state

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, index: int) -> Call: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Call]: ...

    def __getitem__(self, index: int | slice) -> Call | Sequence[Call]:
        if isinstance(index, slice):
            return _WithRows(self._calls[index], self._state)
        call, state = self._calls[index], self._state
        return replace(call, personal=state.personal.of(call.clients), kept=state.kept.of(call.clients))


def _finish(
    method: FinishesRound, personal: ClientRows, shared: ParamTree, results: Sequence[TrainResult], number: int
) -> None:
    """Let the clients whose updates count in a round change their personal parameters, in place."""
    for result in results:
        clients = result.clients[result.accepted]
        if len(clients):
            own = {key: torch.from_numpy(np.array(value)) for key, value in personal.of(clients).items()}
            personal.write(number, clients, to_arrays(method.after_aggregation(own, shared)))


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
