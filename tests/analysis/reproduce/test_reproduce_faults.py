"""`fedpgp reproduce` killed in the middle: the same command goes on, runs nothing twice, and ends in the same table."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from fedpgp.bench.measurement import descendants
from fedpgp.core.files import TEMPORARY
from fedpgp.storage.run_folder import RunFolder

pytestmark = pytest.mark.slow
PATIENCE = 400


def start(folder):
    """Start table 7 with two seeds, four runs one after another, in a separate process and store."""
    folder.mkdir(exist_ok=True)
    settings = [
        "folds.seeds=[1,2]", "federation.rounds=3", "federation.eval_every=3", "tracking.mlflow=false",
        "tune.max_concurrent=1", "resources.backend=serial",
    ]  # fmt: skip
    command = [sys.executable, "-m", "fedpgp", "reproduce", "table7", "--smoke", "--out", "out", *settings]
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)


def finished(folder):
    """Finished runs by name, with what changes if one is run again; a summary is written just before the status."""
    stores = [RunFolder.open(path.parent) for path in sorted(folder.glob("fedpgp-store/runs/*/summary.json"))]
    return {store.path.name: (store.identity["id"], store.status) for store in stores if store.state == "finished"}


def test_killed_twice_it_ends_in_the_table_of_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(PATIENCE) == 0, (whole / "log.txt").read_text()
    shutil.copytree(whole / "fedpgp-store" / "features", killed / "fedpgp-store" / "features")
    kept = {}
    for most in (1, 2):
        process = start(killed)
        deadline = time.monotonic() + PATIENCE
        while len(finished(killed)) < most:
            assert process.poll() is None, (killed / "log.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for pid in (process.pid, *descendants(process.pid)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        assert kept.items() <= finished(killed).items()
        kept = finished(killed)
    assert len(kept) < 4
    assert not (killed / "out").exists()
    assert start(killed).wait(PATIENCE) == 0, (killed / "log.txt").read_text()
    assert kept.items() <= finished(killed).items()  # not run again
    assert finished(killed).keys() == finished(whole).keys()
    folders = [path.name for path in killed.glob("fedpgp-store/runs/*")]
    assert len([name for name in folders if not name.startswith(TEMPORARY)]) == 4  # besides drafts of what was killed
    tables = [(folder / "out" / "table7.csv").read_bytes() for folder in (whole, killed)]
    assert tables[0] == tables[1]
