"""Hosts on one machine: each has a network address, hostname, processes, /tmp, /dev/shm and home folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
NETWORK = "10.77.0"
HEAD_PORT = 6379
READY_SECONDS = 120
MISSING = [one for one in ("ip", "setpriv", "unshare", "nsenter", "mount") if shutil.which(one) is None]
NEEDS_ROOT = pytest.mark.skipif(
    os.geteuid() != 0 or bool(MISSING), reason="needs root and iproute2: hosts are network and mount namespaces"
)
CLOCK = """
import time

right, right_ns = time.time, time.time_ns
time.time = lambda: right() + {seconds}
time.time_ns = lambda: right_ns() + {seconds} * 10**9
"""
SETUP = """
set -e
mount --make-rprivate /
hostname {name}
for kept in {kept}; do
    case "$kept" in
        /tmp/*) mkdir -p "{folder}$kept"; mount --rbind "$kept" "{folder}$kept" ;;
    esac
done
mount --rbind "{folder}/tmp" /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t proc proc /proc
exec sleep infinity
"""


@dataclass
class Host:
    """One of the hosts; its folder `home` is seen by no other, `shared` by those that share it."""

    name: str
    address: str
    home: Path
    process: subprocess.Popen[bytes]
    env: dict[str, str]
    inside: int = 0
    switch: str = ""
    """the network namespace of the switch"""
    port: str = ""
    """the end of the host's cable in the switch"""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def enter(self, *command: str) -> list[str]:
        """A command as it is run on this host."""
        return [
            "nsenter",
            f"--target={self.inside}",
            "--mount",
            "--uts",
            "--net",
            "--pid",
            f"--wd={self.home}",
            *command,
        ]

    def run(self, *command: str, timeout: float = 300, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.enter(*command), env={**self.env, **changed}, cwd=self.home, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    def start(self, *command: str, log: str = "log.txt", **changed: str) -> subprocess.Popen[bytes]:
        """Start a command, whose output goes into a file of the host's home."""
        with (self.home / log).open("ab") as output:
            process = subprocess.Popen(
                self.enter(*command), env={**self.env, **changed}, cwd=self.home, stdout=output, stderr=output
            )
        self.started.append(process)
        return process

    def fedpgp(self, *arguments: str, timeout: float = 300, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run fedpgp's command to its end."""
        return self.run(str(PYTHON), "-m", "fedpgp", *arguments, timeout=timeout, **changed)

    def shift_clock(self, seconds: int) -> None:
        """Let the clock of all Python processes that are started from now on be wrong; files get the right times."""
        folder = self.home / "clock"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK.format(seconds=seconds))
        self.env["PYTHONPATH"] = f"{folder}:{self.env['PYTHONPATH']}"

    def link(self, state: str) -> None:
        """Pull the network cable (`down`), or put it back (`up`)."""
        self._of_network("ip", "link", "set", "eth0", state)

    @contextmanager
    def slow(self, delay_ms: float, loss_percent: float) -> Iterator[None]:
        """Delay every packet that leaves during the block, and lose some, by a program between cable and switch."""
        inner, outer = f"{self.port}i", f"{self.port}o"
        _ip("-n", self.switch, "link", "add", inner, "type", "veth", "peer", "name", outer)
        _ip("-n", self.switch, "link", "set", self.port, "nomaster")
        for name, more in ((outer, ("master", "bridge0")), (inner, ("promisc", "on")), (self.port, ("promisc", "on"))):
            _ip("-n", self.switch, "link", "set", name, *more, "up")
        program = [str(PYTHON), str(Path(__file__).with_name("slow_link.py")), self.port, inner]
        command = ["ip", "netns", "exec", self.switch, *program, str(delay_ms / 1000), str(loss_percent / 100)]
        with subprocess.Popen(command) as process:
            try:
                yield
                assert process.poll() is None
            finally:
                process.kill()
                _ip("-n", self.switch, "link", "del", inner)
                _ip("-n", self.switch, "link", "set", self.port, "promisc", "off", "master", "bridge0")

    def end(self) -> None:
        """Switch the host off: all its processes are killed."""
        self.process.kill()
        self.process.wait(30)
        for one in self.started:
            with suppress(subprocess.TimeoutExpired):
                one.wait(30)

    def _of_network(self, *command: str) -> None:
        subprocess.run(["nsenter", f"--target={self.inside}", "--net", *command], check=True, capture_output=True)


@dataclass
class Network:
    """Hosts on one switch."""

    hosts: list[Host]
    shared: Path
    """a folder that all of them see"""

    @property
    def address(self) -> str:
        """Of Ray's head, on the first host."""
        return f"{self.hosts[0].address}:{HEAD_PORT}"

    def ray(self, host: Host, cpus: int = 1, **changed: str) -> None:
        """Start a Ray node on a host: the head on the first one."""
        head = host is self.hosts[0]
        role = ["--head", f"--port={HEAD_PORT}", "--dashboard-host=0.0.0.0"] if head else [f"--address={self.address}"]
        options = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        host.start(str(PYTHON.parent / "ray"), "start", "--block", *role, *options, log="ray.txt", **changed)

    def wait(self, count: int) -> None:
        """Wait until Ray has so many nodes."""
        script = (
            "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False); "
            "print(sum(node['Alive'] for node in ray.nodes()))"
        )
        deadline = time.monotonic() + READY_SECONDS
        while True:
            seen = self.hosts[0].run(str(PYTHON), "-c", script, self.address)
            if seen.stdout.strip() == str(count):
                return
            assert time.monotonic() < deadline, (seen.stdout, seen.stderr[-500:])
            time.sleep(0.5)


@contextmanager
def network(count: int, folder: Path) -> Iterator[Network]:
    """So many hosts, without Ray; afterwards no process and no interface of theirs is left."""
    mark = uuid.uuid4().hex[:6]
    token, shared, switch = uuid.uuid4().hex, folder / "shared", f"fedpgp-{mark}"
    shared.mkdir()
    with ExitStack() as stack:
        _ip("netns", "add", switch)
        stack.callback(_ip, "netns", "del", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        hosts = []
        for number in range(1, count + 1):
            host = stack.enter_context(_host(number, folder, shared, token))
            _plug(host, switch, number)
            hosts.append(host)
        yield Network(hosts, shared)


@contextmanager
def _host(number: int, folder: Path, shared: Path, token: str) -> Iterator[Host]:
    own = folder / f"host{number}"
    (own / "tmp").mkdir(parents=True)
    home = own / "home"
    home.mkdir()
    kept = [str(path) for path in dict.fromkeys((ROOT, PYTHON.parents[1], folder))]
    script = SETUP.format(name=f"host{number}", kept=" ".join(kept), folder=own)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST"))}
    env |= {
        "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_TMPDIR": "/tmp",
        "PATH": f"{PYTHON.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    flags = ["--mount", "--uts", "--net", "--pid", "--fork", "--kill-child=KILL"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", *flags, "bash", "-c", script], stderr=subprocess.PIPE
    )
    host = Host(f"host{number}", f"{NETWORK}.{number}", home, process, env)
    try:
        host.inside = _child(process)
        yield host
    finally:
        host.end()


def _child(process: subprocess.Popen[bytes]) -> int:
    """The process id of a host's first process, seen from here, once the host is set up."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OSError, IndexError):
            child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
            if Path(f"/proc/{child}/comm").read_text().strip() == "sleep":
                return child
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"the host was not set up: {process.communicate()[1].decode()}")


def _plug(host: Host, switch: str, number: int) -> None:
    """Connect a host to the switch."""
    port = f"port{number}"
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.inside))
    _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
    host.switch, host.port = switch, port
    for command in (
        ["ip", "addr", "add", f"{host.address}/24", "dev", "eth0"],
        ["ip", "link", "set", "eth0", "up"],
        ["ip", "link", "set", "lo", "up"],
    ):
        host._of_network(*command)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
