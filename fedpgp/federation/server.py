"""The server: rounds of sampling, local training, averaging and testing, as a pure step from state to state."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from fedpgp.core.seeding import torch_generator
from fedpgp.core.tree import ParamTree, num_bytes, select, stack, without
from fedpgp.federation.aggregation import add, average
from fedpgp.federation.backends.base import Backend
from fedpgp.federation.client_sampling import blocks, cohort
from fedpgp.federation.confusion import Confusion
from fedpgp.federation.messages import Arrays, Counts, EvaluateCall, TrainCall, TrainResult
from fedpgp.federation.metrics import round_metrics
from fedpgp.federation.records import CLIENT_SCHEMA, RoundRow
from fedpgp.federation.state import State
from fedpgp.federation.worker import FederationJob
from fedpgp.methods.base import LimitsBlocks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundResult:
    """What a round leaves."""

    state: State
    row: RoundRow
    clients: pa.Table  # records.CLIENT_SCHEMA
    changed: np.ndarray  # clients whose personal parameters are new
    confusion: pa.Table | None = None  # records.CONFUSION_SCHEMA, of the last round


class Server:
    """Owns no state of its own: `step` takes a state and gives the next. Computes nothing heavy.

    At 10,000 clients the personal parameters are hundreds of MB, so a step writes them into the state that it was
    given, once all results of the round are there; that state is used up.
    """

    def __init__(self, job: FederationJob, backend: Backend) -> None:
        self.job = job
        self.backend = backend
        self.rounds = job.federation.rounds if job.method.phases else 0
        self.block_size = job.federation.block_size
        if isinstance(job.method, LimitsBlocks):
            self.block_size = min(self.block_size, job.method.max_block)

    def initial_state(self) -> State:
        """Round 0: all clients start from the same parameters, a function of the seed alone."""
        job = self.job
        frozen = job.text.on(job.data.class_sets[job.data.train_set])
        tree = job.method.init(frozen, torch_generator(job.seed, "init"))
        personal = stack(without(tree, job.method.shared_keys), job.data.num_clients)
        return State(0, select(tree, job.method.shared_keys), personal)

    def memory(self, state: State) -> int | None:
        """Bytes that an actor needs to train a block, as one of them measures; None: there is nothing to train."""
        if not self.rounds:
            return None
        block = blocks(np.arange(self.job.data.num_clients), self.block_size)[0]
        calls = [TrainCall(1, block, _rows_of(state.personal, block))]
        (size,) = self.backend.map("memory", calls, _arrays(state.shared))
        return int(size)

    def run(self, state: State) -> Iterator[RoundResult]:
        """The rounds that are left after `state`. A method that learns nothing has one result, round 0."""
        if not self.rounds and state.round == 0:
            yield self._evaluated_start(state)
        for _ in range(state.round, self.rounds):
            result = self.step(state)
            yield result
            state = result.state

    def step(self, state: State) -> RoundResult:
        """One round."""
        federation, number = self.job.federation, state.round + 1
        watch = _Stopwatch()
        who = cohort(
            self.job.seed, number, self.job.data.num_clients, federation.participation, federation.everyone_first
        )
        with watch.stage("train"):
            results, total = self._train(state, number, who)
        with watch.stage("aggregate"):
            state = _aggregate(state, results, total)
        counts = [part for result in results for part in result.before_aggregation]
        last, confusion = number == self.rounds, None
        if number % federation.eval_every == 0 or last:
            with watch.stage("evaluate"):
                tested, confusion = self._evaluate(state, last)
            counts += tested
        wire = num_bytes(state.shared) * len(who)
        tables = [*_train_rows(number, results), *self._rows(number, counts)]
        return self._result(state, tables, who, wire, watch, confusion)

    def _evaluated_start(self, state: State) -> RoundResult:
        watch = _Stopwatch()
        with watch.stage("evaluate"):
            counts, confusion = self._evaluate(state, last=True)
        return self._result(state, self._rows(0, counts), np.arange(0), 0, watch, confusion)

    def _result(
        self,
        state: State,
        tables: list[pa.Table],
        changed: np.ndarray,
        wire: int,
        watch: _Stopwatch,
        confusion: pa.Table | None,
    ) -> RoundResult:
        order = [(column, "ascending") for column in ("split", "metric", "domain", "client")]
        clients = pa.concat_tables(tables).sort_by(order)  # whatever the blocks were
        row = RoundRow(
            round=state.round,
            metrics=round_metrics(clients),
            participants=len(changed),
            bytes_up=wire,
            bytes_down=wire,
            seconds=watch.seconds,
            timestamp_ms=time.time_ns() // 1_000_000,
        )
        return RoundResult(state, row, clients, changed, confusion)

    def _train(self, state: State, number: int, who: np.ndarray) -> tuple[list[TrainResult], ParamTree]:
        """What comes back of the blocks, and apart from it the sum of what they share, added up as they come."""
        calls = [TrainCall(number, block, _rows_of(state.personal, block)) for block in blocks(who, self.block_size)]
        results: list[TrainResult] = []
        total: ParamTree = {}
        for result in self.backend.map("train", calls, _arrays(state.shared)):
            add(total, result.shared_sum)
            results.append(replace(result, shared_sum={}))
        return results, total

    def _evaluate(self, state: State, last: bool) -> tuple[list[Counts], pa.Table | None]:
        """Counts of all clients and, after the last round, what was taken for what."""
        everyone = np.arange(self.job.data.num_clients)
        # Without personal parameters there is one model for all, hence one call; unless each tunes it for itself.
        several = state.personal or self.job.federation.finetune_epochs
        parts = blocks(everyone, self.block_size) if several else [everyone]
        calls = [EvaluateCall(state.round, block, _rows_of(state.personal, block), last) for block in parts]
        confusion = Confusion(self.job.data)
        counts = [
            confusion.taken_from(part)
            for result in self.backend.map("evaluate", calls, _arrays(state.shared))
            for part in result
        ]
        return counts, confusion.table() if last else None

    def _rows(self, number: int, counts: Sequence[Counts]) -> list[pa.Table]:
        return [table for part in counts for table in _count_rows(number, part, self.job.data.domains)]


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def _aggregate(state: State, results: Sequence[TrainResult], summed: ParamTree) -> State:
    """The next state: shared parameters averaged over those who trained, personal ones written back in place."""
    total = sum(result.weight for result in results)
    for result in results:
        for key, value in result.personal.items():
            state.personal[key].numpy()[_places(result.clients)] = value
    if not total:
        log.warning("round %d: no client was admitted, the shared parameters stay as they are", state.round + 1)
    shared = average([summed], total, like=state.shared) if total else state.shared
    return State(state.round + 1, shared, state.personal)


def _train_rows(number: int, results: Sequence[TrainResult]) -> list[pa.Table]:
    """A row per client for the loss, with what went wrong, and one for each named part of it."""
    tables = []
    for result in results:
        for name, loss in {"train": result.loss, **result.parts}.items():
            events = result.events if name == "train" else None
            tables.append(_table(number, result.clients, "train", name, None, None, result.num_examples, loss, events))
    return tables


def _count_rows(number: int, counts: Counts, domains: Sequence[str]) -> list[pa.Table]:
    """Rows over all domains, then per domain if there are several."""
    correct, total = counts.correct, counts.total
    head = (number, counts.clients, counts.split, counts.metric)
    tables = [_table(*head, None, correct.sum(1), total.sum(1))]
    if len(domains) > 1:
        tables += [_table(*head, name, correct[:, d], total[:, d]) for d, name in enumerate(domains)]
    return tables


def _table(
    number: int,
    clients: np.ndarray,
    split: str,
    metric: str,
    domain: str | None,
    correct: np.ndarray | None,
    total: np.ndarray,
    loss: np.ndarray | None = None,
    events: tuple[str | None, ...] | None = None,
) -> pa.Table:
    size = len(clients)
    columns = (number, clients, split, metric, domain, correct, total, loss, events)
    arrays = [
        pa.array(column, kind) if isinstance(column, np.ndarray | tuple) else pa.repeat(pa.scalar(column, kind), size)
        for column, kind in zip(columns, CLIENT_SCHEMA.types, strict=True)
    ]
    return pa.table(arrays, schema=CLIENT_SCHEMA)


def _arrays(tree: ParamTree) -> Arrays:
    return {key: value.numpy() for key, value in tree.items()}


def _rows_of(tree: ParamTree, clients: np.ndarray) -> Arrays:
    return {key: value.numpy()[_places(clients)] for key, value in tree.items()}


def _places(clients: np.ndarray) -> np.ndarray | slice:
    """The sorted clients as an index; as a slice, which copies nothing, where they follow one another."""
    first, last = int(clients[0]), int(clients[-1])
    return slice(first, last + 1) if last - first + 1 == len(clients) else clients
