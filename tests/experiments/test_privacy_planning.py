"""Privacy settings: refused where the guarantee would be void, noise from the budget, and the same bits everywhere."""

from __future__ import annotations

import json
import threading

import pytest
from safetensors.numpy import load_file

from fedpgp import config
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import ConfigError, Interrupted
from fedpgp.experiments import planning, privacy_planning, runner
from fedpgp.storage.run_folder import RunFolder

TREE = {
    "name": "small",
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 1},
    "partition": {"clients": 5},
    "method": {"name": "fedpgp", "n_ctx": 2, "rank": 1},
    "federation": {"rounds": 3, "lr": 0.1, "batch_size": 4, "block_size": 2, "local_epochs": 1},
    "resources": {"backend": "serial"},
}
NOISY = ("privacy.level=client", "privacy.noise_multiplier=1")
BUDGET = ("privacy.level=client", "privacy.epsilon=8", "privacy.delta=0.01")
POISSON = ("federation.sampling=poisson", "federation.participation=0.6")


def settings(*overrides, root="unused"):
    return config.parse(config.override({**TREE, "storage": {"root": str(root)}}, overrides))


def found(*overrides, clients=10):
    return privacy_planning.mechanism(settings(*overrides), clients)


def run(wanted, resume=False, callback=None, stop=None):
    return runner.run(wanted, resume, callback or RunCallback(), stop or threading.Event())


def numbers(path):
    """The rows and the last checkpoint of a run."""
    rows = [(row.round, dict(row.metrics), row.participants) for row in RunFolder.open(path).rounds()]
    state = {key: value.tobytes() for key, value in load_file(max((path / "checkpoints").iterdir())).items()}
    return rows, state


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy.level=client"], "level=client needs noise_multiplier, or epsilon and delta"),
        (["privacy.level=client", "privacy.epsilon=1"], "epsilon needs delta"),
        (["privacy.level=client", "privacy.epsilon=1", "privacy.noise_multiplier=1"], "epsilon needs delta"),
        (["privacy.clip_norm=2"], "clip_norm has no effect with level=none"),
        (["privacy.noise_multiplier=2"], "noise_multiplier has no effect with level=none"),
        (["federation.sampling=poisson", "federation.everyone_first=true"], "everyone_first is for sampling=fixed"),
        ([*NOISY, "privacy.accounting=poisson"], "accounting=poisson differs from federation.sampling=fixed"),
        ([*NOISY, *POISSON, "privacy.accounting=fixed"], "accounting=fixed differs from federation.sampling=poisson"),
        (
            [*NOISY, "federation.everyone_first=true", "federation.participation=0.5"],
            "not the sampling that the accountant assumes",
        ),
        ([*NOISY, "federation.server.name=scaffold"], "with federation.server.name=scaffold clients send more"),
        ([*NOISY, "method.name=zero_shot"], "method zero_shot shares nothing"),
        ([*NOISY, "method.name=coop"], "method coop shares nothing"),
        ([*NOISY, "federation.max_update_norm=1"], "clip_norm limits updates"),
        ([*NOISY, "privacy.where=client", "federation.dropout=0.1"], "a lost client"),
        ([*NOISY, "privacy.where=client", *POISSON], "too little noise"),
    ],
)
def test_refused_before_the_data_are_read(overrides, message):
    with pytest.raises(ConfigError, match=message) as refused:
        planning.settle(settings(*overrides))
    assert "\n" not in str(refused.value)


def test_a_rule_that_needs_every_update_is_refused(monkeypatch):
    monkeypatch.setattr("fedpgp.server_rules.fedavg.Mean.uploads", "stack")
    with pytest.raises(ConfigError, match=r"server\.name=mean needs every update: its sensitivity is unknown"):
        planning.settle(settings(*NOISY, "federation.server.name=mean"))


@pytest.mark.parametrize("where", ["server", "client"])
@pytest.mark.parametrize("rule", ["fedavg", "mean", "fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_rules_of_the_mean_fit(where, rule):
    planning.settle(settings(*NOISY, f"privacy.where={where}", f"federation.server.name={rule}"))
    planning.settle(settings(*NOISY, "privacy.where=client", "federation.sampling=poisson"))  # all clients
    planning.settle(settings(*NOISY, "federation.dropout=0.1", "federation.policy=exclude"))


def test_what_needs_the_number_of_clients():
    with pytest.raises(ConfigError, match="there is only one"):
        found(*NOISY, clients=1)
    with pytest.raises(ConfigError, match=r"privacy.delta=0.1: it must be less than 1 / clients, 0.1"):
        found(*NOISY, "privacy.delta=0.1")
    assert found() is None
    assert found(*NOISY).accountant.delta == pytest.approx(10**-1.1)
    assert found(*NOISY, "privacy.delta=0.01").accountant.delta == 0.01


def test_the_accountant_assumes_the_sampling_of_the_run():
    """Of 10 clients: 6 in every round, or 6 expected; 5 where 5.5 are rounded down."""
    assert found(*NOISY, *POISSON).accountant.participants == pytest.approx(6)
    assert found(*NOISY, *POISSON).accountant.sampling == "poisson"
    fixed = found(*NOISY, "federation.participation=0.55", "privacy.accounting=fixed").accountant
    assert (fixed.sampling, fixed.participants, fixed.clients) == ("fixed", 5, 10)
    assert found(*NOISY, "federation.participation=0.55", "federation.sampling=poisson").accountant.participants == 5.5


@pytest.mark.parametrize("sampling", [(), POISSON])
def test_a_budget_gives_the_least_noise(sampling):
    private = found(*BUDGET, *sampling)
    assert private.noise_multiplier == private.accountant.least_noise(8, 3)
    assert 7.9 < private.accountant.epsilon(private.noise_multiplier, 3) <= 8


def test_rounds_that_do_not_fit_into_the_budget_are_refused():
    """One Gaussian mechanism per round with z = 1 and delta 0.01: epsilon 1.96 for one round, 3.16 for two."""
    one = found(*NOISY, "privacy.delta=0.01").accountant.epsilon(1.0, 1)
    assert found(*BUDGET, "privacy.noise_multiplier=1").noise_multiplier == 1
    with pytest.raises(ConfigError) as refused:
        found(*NOISY, "privacy.delta=0.01", f"privacy.epsilon={one + 0.01}")
    assert "federation.rounds=3 with noise_multiplier=1 spends" in str(refused.value)
    assert "rounds=1 would fit" in str(refused.value)
    with pytest.raises(ConfigError, match="not one round fits"):
        found(*BUDGET, "privacy.noise_multiplier=0")


def test_the_plan_and_the_run_say_what_is_spent(root):
    lines = []
    callback = EventStream(lambda event: lines.append(event.arguments[0]) if event.method == "on_plan" else None)
    path = run(settings(*BUDGET, root=root), callback=callback)
    noise = found(*BUDGET, clients=5).noise_multiplier
    (line,) = (line for line in lines[0].splitlines() if line.startswith("privacy: "))
    assert f"at delta 0.01 after 3 rounds (one client added or removed), noise multiplier {noise:g} by server" in line
    assert line.endswith("clip norm 1; every client counts alike")
    recorded = json.loads((path / "identity.json").read_text())["privacy"]
    assert recorded == {
        "noise_multiplier": noise, "delta": 0.01, "participants": 5, "neighbours": "one client added or removed"
    }  # fmt: skip
    spent = [row.metrics["privacy/epsilon"] for row in RunFolder.open(path).rounds()]
    assert spent == [found(*BUDGET, clients=5).accountant.epsilon(noise, number) for number in (1, 2, 3)]


KINDS = {
    "server": (*NOISY, "privacy.adaptive_clip=true", *POISSON),
    "client": (*NOISY, "privacy.adaptive_clip=true", "privacy.where=client", "federation.participation=0.8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_continued_run_gives_the_same_bits(root, tmp_path, kind):
    whole = run(settings(*KINDS[kind], root=root))
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            stop.set()

    with pytest.raises(Interrupted):
        run(settings(*KINDS[kind], root=tmp_path), callback=EventStream(after_first), stop=stop)
    assert numbers(run(settings(*KINDS[kind], root=tmp_path), resume=True)) == numbers(whole)
    norms = [row.metrics["privacy/clip_norm"] for row in RunFolder.open(whole).rounds()]
    assert len(set(norms)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_actors_give_the_same_bits(root, tmp_path, ray_cluster, kind):
    serial = run(settings(*KINDS[kind], root=root))
    actors = run(settings(*KINDS[kind], "resources.backend=ray", "resources.actors=2", root=tmp_path))
    assert numbers(actors) == numbers(serial)


def test_more_rounds_are_another_run_with_a_budget_of_its_own(tmp_path):
    """A finished run is not extended, which would spend more than its budget; an unfinished one is refused."""
    first = run(settings(*BUDGET, root=tmp_path))
    second = run(settings(*BUDGET, "federation.rounds=4", root=tmp_path), resume=True)
    assert first != second
    noises = [RunFolder.open(path).identity["privacy"]["noise_multiplier"] for path in (first, second)]
    assert noises[0] < noises[1]
    assert all(RunFolder.open(path).rounds()[-1].metrics["privacy/epsilon"] <= 8 for path in (first, second))
