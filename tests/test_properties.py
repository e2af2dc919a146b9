"""Properties that hold for any input."""

from __future__ import annotations

import math
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from fedpgp import config, methods
from fedpgp.clip import model
from fedpgp.clip.feature_cache import FeatureCache, FeatureKey, write_shard
from fedpgp.clip.text_backbone import freeze, readable
from fedpgp.config import BackboneSettings, PartitionSettings
from fedpgp.core.callbacks import RunCallback
from fedpgp.core.errors import DataError, RunError, UserError
from fedpgp.data.partition import Labelled, assign
from fedpgp.experiments import runner
from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow
from fedpgp.federation.state import State, average, weighted_sum
from fedpgp.methods import METHODS
from fedpgp.storage import checkpoint
from fedpgp.storage.run_folder import RunFolder

tried = settings(
    derandomize=True, deadline=None, database=None, max_examples=60, suppress_health_check=list(HealthCheck)
)
few = settings(tried, max_examples=25)


def check_message(error, *words):
    """A refusal says what it is about, by one of these words."""
    assert str(error)
    assert any(word in str(error) for word in words), error


SCHEMES = st.sampled_from([{"scheme": "pathological"}, {"scheme": "iid"}, {"scheme": "dirichlet", "beta": 0.5}])


@tried
@given(SCHEMES, st.lists(st.integers(0, 5), min_size=12, max_size=80), st.integers(1, 6), st.integers(0, 99))
def test_a_partition_is_disjoint_covers_all_and_follows_its_seed(scheme, labels, clients, seed):
    images = Labelled(labels=np.array(labels), domains=np.zeros(len(labels), np.int32))
    wanted, splits = PartitionSettings(**scheme, clients=clients, min_per_client=1), {"train": images}
    try:
        held = assign(wanted, splits, clients, seed)["train"]
    except DataError as error:
        check_message(error, "partition")
        return
    assert len(held) == clients
    assert np.array_equal(np.sort(np.concatenate(held)), np.arange(len(labels)))
    assert all(own.size and np.all(np.diff(own) > 0) for own in held)
    again = assign(wanted, splits, clients, seed)["train"]
    assert all(np.array_equal(one, other) for one, other in zip(held, again, strict=True))


@tried
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=12), st.data())
def test_an_average_is_weighted_by_weights_that_sum_to_one_however_it_is_cut(weights, data):
    """The average of ones is one; that of one client's value is its share."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(weights)), max_size=3)) | {0, len(weights)})
    values = torch.cat([torch.ones(len(weights), 1), torch.eye(len(weights))], dim=1)
    sums = [weighted_sum({"x": values[start:end]}, torch.tensor(weights[start:end])) for start, end in pairwise(cuts)]
    mean = average(sums, sum(weights), {"x": values[0]})["x"]
    assert mean[0].item() == pytest.approx(1)
    assert mean[1:].tolist() == pytest.approx([weight / sum(weights) for weight in weights])


@tried
@given(st.sets(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(1, 3), st.integers(1, 5), st.randoms())
def test_a_cache_returns_what_was_written(tmp_path_factory, rows, views, width, random):
    path, key = tmp_path_factory.mktemp("cache") / "a.arrow", FeatureKey("m", "w", "t", views=views)
    order = list(rows)
    random.shuffle(order)
    features = np.random.default_rng(0).normal(size=(len(order), views, width)).astype(np.float32)
    write_shard(path, key, np.array(order), features)
    asked = [random.randrange(len(order)) for _ in range(10)]
    found = FeatureCache.open(path, key).gather(np.array(order)[asked], view=views - 1)
    assert np.array_equal(found, features[asked, views - 1])


def test_a_checkpoint_truncated_or_changed_at_any_byte_is_refused(tmp_path):
    reference = checkpoint.save(tmp_path, State(1, {"ctx": torch.ones(2)}, {"u": torch.ones(2, 1)}), "d")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match="truncated checkpoint"):
            checkpoint.load(tmp_path, reference, "d")
        path.write_bytes(whole[:length] + bytes([whole[length] ^ 1]) + whole[length + 1 :])
        with pytest.raises(RunError, match="damaged checkpoint"):
            checkpoint.load(tmp_path, reference, "d")


@pytest.mark.parametrize("kind", ["rounds", "checkpoints"])
def test_with_its_last_file_truncated_a_run_resumes_from_the_round_before(tmp_path, kind):
    store = RunFolder.create(tmp_path, "x", "d", "name: x\n", {})
    for number in (1, 2):
        state = State(number, {"ctx": torch.full((2,), float(number))}, {})
        row = RoundRow(number, {"test/local": 1.0}, 1, 1, 1, {}, number)
        store.commit(row, CLIENT_SCHEMA.empty_table(), checkpoint.save(store.checkpoints, state, "d"))
    files = {path: path.read_bytes() for path in (*store.path.glob("rounds/*"), *store.checkpoints.iterdir())}
    last = max(path for path in files if path.parent.name == kind)
    for length in range(0, len(files[last]), 7):
        for path, content in files.items():
            path.write_bytes(content)
        last.write_bytes(files[last][:length])
        state, _ = RunFolder.open(store.path).last_good("d")
        assert (state.round, state.shared["ctx"].tolist()) == (1, [1, 1])


TOKENS = SimpleTokenizer()
TINY = model.load(BackboneSettings(name="tiny", weights="random"))
NAME = st.text(min_size=1, max_size=40)


@few
@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.sampled_from([1, 4, 16]))
def test_any_class_names_are_encoded_as_by_the_plain_tower_or_refused(names, n_ctx):
    """The plain way of CoOp: "X ... X NAME." is tokenised, and the embeddings of the letters X are replaced."""
    tower = TINY.model
    tokens = TOKENS([f"{'X ' * n_ctx}{readable(name)}." for name in names])
    ctx = torch.randn(1, n_ctx, 64, generator=torch.Generator().manual_seed(1))
    try:
        ours = freeze(TINY, names, "a {}.").on(range(len(names))).encode(ctx)[0]
    except DataError as error:
        long = [readable(name) for name in names if len(TOKENS.encode(f"a {readable(name)}.")) + n_ctx > 70]
        check_message(error, *(form for name in long for form in (name, repr(name)[1:-1])))
        return
    x = tower.token_embedding(tokens)
    x = torch.cat([x[:, :1], ctx.expand(len(names), -1, -1), x[:, 1 + n_ctx :]], dim=1) + tower.positional_embedding
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask))
    plain = x[torch.arange(len(names)), tokens.argmax(1)] @ tower.text_projection
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_a_class_name_that_is_too_long_is_refused():
    with pytest.raises(DataError, match="zebra zebra"):
        freeze(TINY, ["cat", "zebra " * 80], "a {}.")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


NUMBER = st.one_of(st.integers(1, 3), st.floats(0.125, 1, width=16), st.sampled_from([math.nan, -1, 0, "many", None]))
CHANGES = {
    "partition.scheme": st.sampled_from(["iid", "pathological", "dirichlet", "domain"]),
    "partition.clients": st.one_of(st.integers(0, 20), st.none()),
    "protocol.shots": st.one_of(st.integers(0, 3), st.none()),
    "protocol.name": st.sampled_from(["base_to_novel", "all_classes", "leave_one_domain_out"]),
    "method.name": st.sampled_from([*METHODS, "nothing"]),
    "method.n_ctx": NUMBER,
    "method.rank": NUMBER,
    "federation.lr": NUMBER,
    "federation.participation": NUMBER,
    "federation.block_size": NUMBER,
    "federation.policy": st.sampled_from(["fail", "exclude", "clip", "ask"]),
    "federation.finetune_epochs": NUMBER,
    "data.template": st.one_of(st.none(), st.just("{} {x}"), st.text(max_size=5)),
    "seed": NUMBER,
}
SETTINGS = st.lists(st.sampled_from(sorted(CHANGES)), max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: CHANGES[key] for key in keys})
)


@few
@given(SETTINGS)
def test_any_settings_run_a_round_or_are_refused_by_name(root, changes):
    base = {
        "data": {"name": "shapes"}, "backbone": {"name": "tiny", "weights": "random"}, "protocol": {"shots": 1},
        "partition": {"clients": 2}, "method": {"name": "promptfl", "n_ctx": 1}, "resources": {"backend": "serial"},
        "federation": {"rounds": 1, "local_epochs": 1, "eval_every": 1}, "storage": {"root": str(root)},
    }  # fmt: skip
    try:
        wanted = config.parse(config.assign(base, changes, methods.carry))
        path = runner.run(wanted, False, RunCallback(), threading.Event())
    except UserError as error:
        check_message(error, "")
        return
    rows = RunFolder.open(path).rounds()
    assert rows
    assert all(0 <= value <= 100 for row in rows for name, value in row.metrics.items() if name.endswith("local"))
