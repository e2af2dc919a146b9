"""Each method through a whole experiment; invalid settings are rejected before an image is read."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from rounds import check_same_bits
from test_fedotp import plain

from fedpgp import config
from fedpgp.clip import model
from fedpgp.clip.images import patch_tokens
from fedpgp.config import ProtocolSettings
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import BackboneError, ConfigError, Interrupted, UserError
from fedpgp.experiments import planning, runner
from fedpgp.federation.client_rows import OnDisk
from fedpgp.storage.run_folder import RunFolder

RUNS = {
    "prompt_prox": {"n_ctx": 2},
    "fedcocoop": {"n_ctx": 2},
    "fedmaple": {"depth": 2},
    "dp_fpl": {"n_ctx": 2, "rank": 1, "epsilon": 8, "clip_norm": 0.1, "noise_rounds": 3, "noise_batch": 4},
    "fedmgp": {"groups": 3, "shared_groups": 2},
    "fedotp": {"n_ctx": 2, "max_iter": 5},
    "fedpgp": {"n_ctx": 2, "rank": 1, "num_prompts": 2},
    "kgcoop": {"n_ctx": 2},
    "prograd": {"n_ctx": 2},
    "promptfolio": {"n_ctx": 2},
    "fedpha": {"n_ctx": 2, "local_lengths": [3, 1]},
    "fedtpg": {"n_ctx": 2, "depth": 1},
}


LENGTHS = {"dp_fpl": {"local_steps": 1}}
"""Of local training in a round, where it is not one epoch."""


def settings(root, method, dtype="float32", rounds=1, **data):
    tree = {
        "data": {"name": "shapes", **data},
        "protocol": {"shots": 1},
        "partition": {"clients": 3},
        "method": method,
        "backbone": {"name": "tiny", "weights": "random", "dtype": dtype},
        "federation": {
            "rounds": rounds,
            "batch_size": 4,
            "block_size": 2,
            **LENGTHS.get(method["name"], {"local_epochs": 1}),
        },
        "resources": {"backend": "serial"},
        "storage": {"root": str(root)},
    }
    return config.parse(tree)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("name", RUNS)
def test_every_method_runs(root, name):
    wanted = settings(root, {"name": name, **RUNS[name]})
    (row,) = RunFolder.open(runner.run(wanted, False, callback=RunCallback(), stop=threading.Event())).rounds()
    assert {"test/local", "test/base", "test/novel", "val/hm"} <= row.metrics.keys()
    plan = planning.plan(wanted)
    params = plan.method.init(plan.text.on(range(2)), torch.Generator())
    assert row.bytes_up == 3 * sum(4 * params[key].numel() for key in plan.method.shared_keys)


@pytest.mark.parametrize(
    "name", ["kgcoop", "prograd", "promptfolio", "fedpha", "dp_fpl", pytest.param("fedmgp", marks=pytest.mark.slow)]
)
def test_a_resumed_run_gives_the_bits_of_an_uninterrupted_one(root, name):
    same_when_resumed(settings(root, {"name": name, **RUNS[name]}, rounds=3))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_fedtpg_as_in_its_paper_on_ray_and_resumed(root):
    """Own classes, the unweighted mean, a sample of the clients, and momentum that stays with each of them."""
    tree = settings(root, {"name": "fedtpg", **RUNS["fedtpg"]}).model_dump(mode="json")
    tree["protocol"]["train_classes"] = "own"
    tree["federation"] |= {"rounds": 3, "participation": 0.7, "keep_momentum": True, "lr_schedule": "cosine"}
    tree["federation"]["server"] = {"name": "mean", "lr": 1.0}
    serial = same_when_resumed(config.parse(tree))
    on_ray = config.parse({**tree, "resources": {"backend": "ray", "actors": 2}})
    state = same_bits(serial, runner.run(on_ray, False, RunCallback(), threading.Event()))
    assert state.kept["momentum.0.queries"].flatten(1).any(1).all()


def same_when_resumed(wanted):
    """Run an experiment whole, and stopped after its first round and resumed: both give the same bits."""
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            stop.set()

    whole = runner.run(wanted, False, RunCallback(), threading.Event())
    with pytest.raises(Interrupted):
        runner.run(wanted, False, EventStream(after_first), stop)
    resumed = runner.run(wanted, True, RunCallback(), threading.Event())
    assert resumed != whole
    same_bits(whole, resumed)
    return whole


def same_bits(one, other):
    """Whether two runs have the same metrics, clients and last state."""
    first, second = RunFolder.open(one), RunFolder.open(other)
    assert [dict(row.metrics) for row in first.rounds()] == [dict(row.metrics) for row in second.rounds()]
    assert first.clients().equals(second.clients())
    left, right = (store.state_at(len(store.rounds())) for store in (first, second))
    for tree in ("shared", "personal", "server", "kept"):
        values, others = getattr(left, tree), getattr(right, tree)
        assert values.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in values.items())
    return left


@pytest.mark.parametrize("name", ["fedpha", "fedmgp"])
def test_parameters_held_on_disk_give_the_bits_of_those_in_memory(tmp_path, name):
    """Of methods whose clients start from different parameters, or change theirs at the end of a round; resumed."""
    memory = settings(tmp_path / "memory", {"name": name, **RUNS[name]}, rounds=2)
    memory = memory.model_copy(update={"federation": memory.federation.model_copy(update={"participation": 0.4})})
    disk = config.parse(memory.model_dump() | {"resources": {"backend": "serial", "personal_memory": 0}})
    disk = disk.model_copy(update={"storage": settings(tmp_path / "disk", {"name": name}).storage})
    assert memory.resources.personal_memory is None
    whole, stop = runner.run(memory, False, RunCallback(), threading.Event()), threading.Event()
    with pytest.raises(Interrupted):
        runner.run(disk, False, EventStream(lambda event: event.method == "on_round" and stop.set()), stop)
    resumed = RunFolder.open(runner.run(disk, True, RunCallback(), threading.Event()))
    expected = RunFolder.open(whole)
    assert resumed.clients().equals(expected.clients())
    assert [dict(row.metrics) for row in resumed.rounds()] == [dict(row.metrics) for row in expected.rounds()]
    method = planning.settle(disk)[1]
    found = resumed.state_at(2, personal_of=getattr(method, "personal_of", None))
    assert isinstance(found.personal, OnDisk)
    assert (found.personal.changed == 0).any()  # a client that never trained
    check_same_bits(found, expected.state_at(2))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", ["dp_fpl", "fedmgp"])
def test_actors_give_the_bits_of_the_serial_backend(tmp_path, name):
    """Methods that draw random numbers of their own, in blocks of two of three clients."""
    runs = []
    for resources in ({"backend": "serial"}, {"backend": "ray", "actors": 2}):
        wanted = settings(tmp_path / resources["backend"], {"name": name, **RUNS[name]}, rounds=3)
        wanted = wanted.model_copy(update={"resources": wanted.resources.model_copy(update=resources)})
        runs.append(runner.run(wanted, False, RunCallback(), threading.Event()))
    same_bits(*runs)


@pytest.mark.parametrize("name", ["kgcoop", "prograd", "promptfolio", "fedpha"])
def test_clients_train_among_their_own_classes(root, name):
    """Each has some of the fifteen base classes: the loss among these is below that among all."""
    all_classes = settings(root, {"name": name, **RUNS[name]})
    own = all_classes.model_copy(update={"protocol": ProtocolSettings(shots=1, train_classes="own")})
    losses = []
    for wanted in (all_classes, own):
        (row,) = RunFolder.open(runner.run(wanted, False, RunCallback(), threading.Event())).rounds()
        losses.append(row.metrics["train/ce" if "train/ce" in row.metrics else "train/loss"])
        assert np.isfinite(losses[-1])
    assert losses[1] < losses[0]


def test_clients_of_fedpha_keep_the_lengths_they_start_with(root):
    wanted = settings(root, {"name": "fedpha", "n_ctx": 2, "local_lengths": [3, 1]})
    state = RunFolder.open(runner.run(wanted, False, RunCallback(), threading.Event())).state_at(1)
    assert state.personal["length"].tolist() == [[3], [1], [3]]
    assert [int(client.any(1).sum()) for client in state.personal["local"]] == [3, 1, 3]


@pytest.mark.parametrize("name", ["promptfl", "zero_shot", "fedotp"])
def test_the_image_tower_goes_only_where_it_is_used(root, name):
    assert planning.plan(settings(root, {"name": name})).text.visual is None
    assert planning.plan(settings(root, {"name": "fedmaple", "depth": 1})).text.visual is not None


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        ({"name": "fedpgp", "n_ctx": 4}, "method fedpgp: rank: 8 is more than a context of 4 tokens"),
        ({"name": "fedpgp", "rank": 0}, "method fedpgp: rank: "),
        ({"name": "fedmaple"}, "method fedmaple: depth: 9 is more than the 2 layers of the backbone"),
    ],
)
def test_settings_that_do_not_fit_the_backbone(tmp_path, method, rule):
    with pytest.raises(ConfigError, match=rule):
        planning.plan(settings(tmp_path, method))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({"name": "promptfl", "n_ctx": 64}, r"class 'a .* x' \(\d\d tokens\): longer than the 77 tokens"),
        ({"name": "fedmaple", "n_ctx": 64, "depth": 1, "ctx_init": None}, "longer than the 77 tokens"),
        ({"name": "coop", "ctx_init": " "}, r"method\.ctx_init: no word in ' '"),
        ({"name": "fedmaple", "depth": 1, "ctx_init": " "}, "n_ctx: 2 is more than the 0 tokens of ctx_init ' '"),
    ],
)
def test_prompts_that_are_too_long_or_empty_are_rejected_for_novel_classes_too(tmp_path, method, what):
    """The last class, a novel one, has the longest name."""
    names = list(planning.plan(settings(tmp_path, {"name": "zero_shot"})).data.class_names)
    names[-1] = "a very long name of twenty words" + 12 * " x"
    with pytest.raises(UserError, match=what):
        planning.plan(settings(tmp_path, method, class_names=names))
    assert list(tmp_path.iterdir()) == []


def test_underscores_in_initial_words_are_spaces(root):
    plans = [
        planning.plan(settings(root, {"name": "promptfl", "ctx_init": words}))
        for words in ("a photo of a", "a_photo_of_a")
    ]
    spaces, underscores = (one.method.init(one.text.on([0]), torch.Generator())["ctx"] for one in plans)
    assert len(spaces) == 4
    assert torch.equal(spaces, underscores)


def test_names_with_the_same_tokens_get_a_warning(tmp_path, caplog):
    names = list(planning.plan(settings(tmp_path, {"name": "zero_shot"})).data.class_names)
    assert not caplog.records
    names[0], names[1] = "cat & dog", "cat &amp; dog"
    planning.plan(settings(tmp_path, {"name": "zero_shot"}, class_names=names))
    (record,) = caplog.records
    message = "2 of 30 classes have the same tokens as another for backbone tiny (cat & dog, cat &amp; dog), so"
    assert record.getMessage().startswith(message)


def tower_of(vision):
    clip = CLIP(16, vision, {"width": 64, "heads": 1, "layers": 1})
    return lambda given: dataclasses.replace(model_load(given), model=clip, name="RN1")


model_load = model.load
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
POOLED = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "attentional_pool": True}


@pytest.mark.parametrize(("name", "vision"), [("fedmaple", RESNET), ("fedmaple", POOLED), ("fedotp", POOLED)])
def test_an_unsupported_tower_is_rejected(tmp_path, monkeypatch, name, vision):
    monkeypatch.setattr(model, "load", tower_of(vision))
    with pytest.raises(BackboneError, match=f"backbone.name: RN1 does not fit method {name}: .* need a plain ViT"):
        planning.plan(settings(tmp_path, {"name": name}))
    assert list(tmp_path.iterdir()) == []


def test_fedotp_takes_a_resnet(tmp_path, monkeypatch):
    """Logits of the four places of its last feature map, against the published iteration in float64."""
    monkeypatch.setattr(model, "load", tower_of({**RESNET, "image_size": 64}))
    plan = planning.plan(settings(tmp_path, {"name": "fedotp", "n_ctx": 2, "max_iter": 5, "thresh": 0}))
    visual, images = plan.backbone.model.visual.eval(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        tokens = patch_tokens(visual, images)
        torch.testing.assert_close(tokens[:, 0], visual(images))
    assert tokens.shape == (3, 1 + 4, 16)
    frozen = plan.text.on(range(5))
    params = {key: value[None] for key, value in plan.method.init(frozen, torch.Generator().manual_seed(0)).items()}
    logits = plan.method.classifier(params, frozen)(tokens[None])[0]
    prompts = torch.cat([params["ctx"], params["local"][0]])
    text = torch.nn.functional.normalize(frozen.encode(prompts), dim=-1)
    patches = torch.nn.functional.normalize(tokens[:, 1:], dim=-1)
    for image, label in np.ndindex(3, 5):
        sim = text[:, label] @ patches[image].T
        score = (plain(sim, 0.8, 0.1, 5) * sim.double().numpy()).sum()
        assert float(logits[image, label]) == pytest.approx(frozen.logit_scale * score, abs=1e-3)
