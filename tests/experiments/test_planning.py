"""`--resume` is refused if the settings of an unfinished run were edited."""

from __future__ import annotations

import json
import threading

import pytest

from fedpgp import config
from fedpgp.core.callbacks import EventStream, RunCallback
from fedpgp.core.errors import ConfigError, Interrupted
from fedpgp.experiments import runner
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
