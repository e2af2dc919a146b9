"""Shared by all tests: a temporary home folder, one thread, and one Ray per process for the tests that ask for it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""Name of this worker of pytest-xdist; None in the process that starts the workers, and without xdist."""

# Set before ray is imported anywhere: a local Ray writes a token into the home folder. A worker's home is inside the
# home of the process that started it, which removes all of them, also that of a worker that crashed.
os.environ["HOME"] = os.path.join(os.environ["HOME"], WORKER) if WORKER else tempfile.mkdtemp(prefix="fedpgp-test-")
os.makedirs(os.environ["HOME"], exist_ok=True)
UNSET = (
    "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_ALLOW_FILE_STORE",
)  # fmt: skip
for variable in UNSET:
    os.environ.pop(variable, None)
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex
os.environ["RAY_TMPDIR"] = os.environ["HOME"]  # where sessions keep their logs and sockets
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "120"


def pytest_unconfigure():
    shutil.rmtree(os.environ["HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_folder():
    """The authors' numbers: FEDPGP_GOLDEN names another set of them."""
    return Path(os.environ.get("FEDPGP_GOLDEN", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def _ray_ends():
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def ray_cluster(_ray_ends):
    """A local Ray with 4 CPUs and 2 GPUs that do not exist, shared by all modules that ask for it."""
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")


@pytest.fixture
def fedpgp(monkeypatch, capsys):
    """Run the command in this process; gives (exit code, stdout, stderr)."""
    from fedpgp.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedpgp", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            sys.exit(main())
        captured = capsys.readouterr()
        return exited.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def made_run(tmp_path):
    """Write a run to disk as if it had run: gives its folder.

    Call it with overrides, with the metrics of each of its rounds (`test_local=[50, 60]`), and `more` of its identity.
    """
    from fedpgp import config
    from fedpgp.federation.metrics import CLIENT_SCHEMA, RoundRow
    from fedpgp.federation.state import State
    from fedpgp.storage import checkpoint
    from fedpgp.storage.run_folder import RunFolder

    def make(
        *overrides, root=tmp_path / "store", state="finished", partition="p{seed}", version="1", name="x",
        clients=None, pooled=None, shared=None, personal=None, more=None, **series,
    ):  # fmt: skip
        experiment = config.parse(
            config.override({"name": name, "backbone": {"name": "tiny", "weights": "random"}}, overrides)
        )
        identity = {
            "method": experiment.method.name, "data": experiment.data.name, "backbone": "tiny", "seed": experiment.seed,
            "client_names": ["anna", "ben"], "class_names": ["cat", "dog"], "manifest_digest": "m",
            "partition_digest": partition.format(seed=experiment.seed), "weights_fingerprint": "w",
            "versions": {"fedpgp": version}, **(more or {}),
        }  # fmt: skip
        digest = config.digest(experiment)
        store = RunFolder.create(root, experiment.name, digest, config.dump(experiment), identity)
        for number in range(1, max(map(len, series.values()), default=0) + 1):
            metrics = {
                (key if "/" in key else key.replace("_", "/", 1)): float(values[number - 1])
                for key, values in series.items()
            }
            row = RoundRow(number, metrics, 2, 1_000_000, 2_000_000, {"train": 0.5}, number)
            learned = State(number, shared or {}, personal or {})
            rows = CLIENT_SCHEMA.empty_table() if clients is None else clients
            store.commit(row, rows, checkpoint.save(store.checkpoints, learned, digest), pooled)
        {"finished": lambda: store.finish({}), "failed": lambda: store.fail("disk full"), "running": lambda: None}[
            state
        ]()
        return store.path

    return make


GROUP = 1500


@pytest.fixture
def shared_root():
    """A folder that two users of one group share: setgid and writable for the group, where all can enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as two users")
    with tempfile.TemporaryDirectory(prefix="fedpgp-shared-") as folder:
        os.chmod(folder, 0o755)
        root = Path(folder) / "store"
        root.mkdir()
        os.chown(root, -1, GROUP)
        root.chmod(0o2775)
        yield root


@pytest.fixture
def as_user() -> Callable[..., AbstractContextManager[None]]:
    """A context in which this process acts as another user of the group; import what it needs before."""

    @contextmanager
    def acting(uid: int, umask: int = 0o022):
        groups, before = os.getgroups(), os.umask(umask)
        os.setgroups([])
        os.setegid(GROUP)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
            os.umask(before)

    return acting
