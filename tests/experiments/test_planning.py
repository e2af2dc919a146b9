"""`--resume` is refused if the settings of an unfinished run were edited."""

from __future__ import annotations

import json
import os
import threading

import pytest

from fedpgp import config
from fedpgp.core import provenance
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import ConfigError, Interrupted
from fedpgp.experiments import planning, runner
from fedpgp.storage.run_folder import RunFolder

TREE = {
    "name": "small",
    "data": {"name": "shapes"},
    "backbone": {"name": "tiny", "weights": "random"},
    "protocol": {"shots": 1},
    "partition": {"clients": 5},
    "method": {"name": "promptfl", "n_ctx": 2},
    "federation": {"rounds": 2, "batch_size": 4, "local_epochs": 1},
    "resources": {"backend": "serial"},
}


def settings(root, *overrides):
    return config.parse(config.override({**TREE, "storage": {"root": str(root)}}, overrides))


def run(wanted, **how):
    return runner.run(wanted, how.pop("resume", False), RunCallback(), threading.Event(), **how)


@pytest.fixture
def begun(tmp_path):
    """A storage root with one run in it that was stopped after its first round."""
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round" and event.arguments[1] == 1:
            stop.set()

    with pytest.raises(Interrupted):
        runner.run(settings(tmp_path), False, EventStream(after_first), stop)
    return tmp_path


def test_an_edited_setting_is_refused_with_the_difference(begun):
    with pytest.raises(ConfigError) as refused:
        run(settings(begun, "federation.lr=0.5", "method.n_ctx=3"), resume=True)
    (store,) = RunFolder.find(begun)
    first, *edited, advice = str(refused.value).splitlines()
    assert f"{store.path} (stopped)" in first
    assert edited == [
        "  method.n_ctx: was 2, is 3",
        f"  federation.lr: was {config.FederationSettings().lr}, is 0.5",
    ]
    assert "without --resume" in advice
    assert len(RunFolder.find(begun)) == 1  # nothing was begun


def test_changed_data_and_weights_count_as_edits(begun):
    (store,) = RunFolder.find(begun)
    digest = store.identity["config_digest"]
    others = {"config_digest": "0" * 12, "weights_fingerprint": "1" * 12, "manifest_digest": "2" * 12}
    (store.path / "identity.json").write_text(json.dumps({**store.identity, **others}))
    store.path.rename(store.path.with_name(store.path.name.replace(digest, "0" * 12)))
    with pytest.raises(ConfigError) as refused:
        run(settings(begun), resume=True)
    assert [line.split(", is")[0] for line in str(refused.value).splitlines()[1:-1]] == [
        f"  data.digest: was {'2' * 12}",
        f"  backbone.fingerprint: was {'1' * 12}",
    ]


@pytest.mark.parametrize(
    "overrides",
    [["seed=2"], ["name=other", "federation.lr=0.5"]],
    ids=["another seed", "another name"],
)
def test_another_run_is_not_an_edit(begun, overrides):
    run(settings(begun, *overrides), resume=True)
    assert len(RunFolder.find(begun)) == 2


def test_finished_running_and_unreadable_runs_are_ignored(begun):
    """A finished run, one that another process is at work on, and one that this version cannot read."""
    edited = settings(begun, "federation.lr=0.5")
    (store,) = RunFolder.find(begun)
    with store.lock():
        first = run(edited, resume=True)
    (store.path / "config.yaml").write_text("federation: {of: another version}")
    assert run(settings(begun, "federation.lr=0.25"), resume=True) != first
    assert RunFolder.open(first).state == "finished"


def test_a_restarted_driver_ignores_edits(begun):
    assert run(settings(begun, "federation.lr=0.5"), resume=False, restarted=True).is_dir()


def test_without_resume_edits_are_a_new_run(begun):
    run(settings(begun, "federation.lr=0.5"))
    assert len(RunFolder.find(begun)) == 2


@pytest.fixture
def pictures(tmp_path):
    """Bitmaps, which are of one size in bytes: gives a function that writes them in a tone and restores their times."""
    from PIL import Image

    def write(tone):
        for number in range(24):
            path = tmp_path / "data" / "abcd"[number % 4] / f"{number}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (tone, 10 * number, 90)).save(path)
            os.utime(path, (1_700_000_000, 1_700_000_000))
        return ["data.name=folder", f"data.root={tmp_path / 'data'}"]

    return write


def stopped(wanted):
    stop = threading.Event()

    def after_first(event):
        if event.method == "on_round":
            stop.set()

    with pytest.raises(Interrupted):
        runner.run(wanted, False, EventStream(after_first), stop)


def test_a_run_is_not_continued_on_replaced_images(pictures, tmp_path):
    wanted = settings(tmp_path / "store", *pictures(20), "partition.clients=2")
    stopped(wanted)
    (store,) = RunFolder.find(tmp_path / "store")
    before = store.identity["content_digest"]
    pictures(200)
    now = planning.plan(wanted).content
    with pytest.raises(ConfigError) as refused:
        run(wanted, resume=True)
    first, edited, advice = str(refused.value).splitlines()
    assert f"no run has exactly these settings and images (data.content); {store.path} (stopped) has others" in first
    assert edited == f"  data.content: was {before}, is {now}"
    assert "restore its settings and images" in advice
    pictures(20)
    assert run(wanted, resume=True) == store.path


def test_a_finished_run_on_replaced_images_is_not_the_result(pictures, tmp_path):
    wanted = settings(tmp_path / "store", *pictures(20), "partition.clients=2")
    first = run(wanted)
    pictures(200)
    second = run(wanted, resume=True)
    assert second != first
    assert len(list((tmp_path / "store" / "features").glob("*.arrow"))) == 2
    assert run(wanted, resume=True) == second
    pictures(20)
    assert run(wanted, resume=True) == first


def test_a_run_that_recorded_no_images_is_continued(pictures, tmp_path):
    wanted = settings(tmp_path / "store", *pictures(20), "partition.clients=2")
    stopped(wanted)
    (store,) = RunFolder.find(tmp_path / "store")
    identity = {key: value for key, value in store.identity.items() if key != "content_digest"}
    (store.path / "identity.json").write_text(json.dumps(identity))
    assert run(wanted, resume=True) == store.path


def test_a_run_continued_with_other_versions_says_so_and_records_the_rounds(tmp_path):
    wanted, events = settings(tmp_path), []
    stopped(wanted)
    (store,) = RunFolder.find(tmp_path)
    identity = store.identity
    identity["versions"]["torch"], identity["git_commit"] = "2.3.0", "0" * 40
    identity["hardware"]["processor"] = "another"
    (store.path / "identity.json").write_text(json.dumps(identity))
    runner.run(wanted, True, EventStream(events.append), threading.Event())
    (warned,) = (
        event.arguments[0] for event in events if event.method == "on_message" and "torch" in event.arguments[0]
    )
    assert "round 2 and the next ones are made with different torch (2.3.0, " in warned
    assert "processor (another, " in warned
    first, second = store.stretches
    assert (first["versions"]["torch"], first["git_commit"], first["first_round"]) == ("2.3.0", "0" * 40, 1)
    assert (second["versions"], second["first_round"]) == (provenance.versions(), 2)


def test_a_run_continued_with_the_same_versions_says_nothing(tmp_path):
    wanted, events = settings(tmp_path), []
    stopped(wanted)
    runner.run(wanted, True, EventStream(events.append), threading.Event())
    assert not [event for event in events if event.method == "on_message"]
    (store,) = RunFolder.find(tmp_path)
    assert not (store.path / "stretches.json").exists()
