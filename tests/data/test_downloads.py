"""Downloads of every data set from a local web server, whole and with faults; torchvision's checksums are replaced."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import file_server
import huggingface_hub
import pytest
from file_server import Fault, FileServer
from huggingface_hub.utils import _http
from published import DATA_SETS, Published
from torchvision.datasets import utils

from fedpgp.config import DataSettings
from fedpgp.core.errors import DataError
from fedpgp.core.files import locked
from fedpgp.data import manifest
from fedpgp.data.prepare import prepare
from fedpgp.data.sources import SOURCES
from fedpgp.data.sources.base import Source

ROOT = Path(__file__).parents[2]
NAMES = [one.__name__ for one in DATA_SETS]


@pytest.fixture(scope="module")
def server() -> Iterator[FileServer]:
    with file_server.serving() as server:
        yield server


@pytest.fixture
def published(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Published]]:
    """Publish a data set on the server, which answers for every host of the internet."""

    def redirected(request: object) -> None:
        parts = urlsplit(str(request.url))  # type: ignore[attr-defined]
        if not parts.netloc.startswith("127.0.0.1"):
            request.url = type(request.url)(server.address + parts.path)  # type: ignore[attr-defined]

    def client() -> object:
        made = _http.default_client_factory()
        made.event_hooks["request"].append(redirected)
        return made

    original: dict[str, str] = {}

    def check_md5(path: str, md5: str) -> bool:
        assert len(md5) == 32
        return utils.calculate_md5(path) == original[os.path.basename(path)]

    def publish(name: str) -> Published:
        made = next(one for one in DATA_SETS if one.__name__ == name)()
        server.reset()
        server.files = {urlsplit(url).path: content for url, content in made.files.items()}
        original.update(
            {os.path.basename(url): hashlib.md5(content).hexdigest() for url, content in made.files.items()}
        )
        return made

    monkeypatch.setattr(utils, "check_md5", check_md5)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10)  # what is not yet a chunk is lost
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    huggingface_hub.set_client_factory(client)  # type: ignore[arg-type]
    yield publish
    huggingface_hub.set_client_factory(_http.default_client_factory)


def paths(made: Published) -> list[str]:
    return [urlsplit(url).path for url in made.files]


def ready(name: str, root: Path, made: Published) -> None:
    """Prepare a data set, which must become the published one."""
    said: list[str] = []
    built = prepare(name, root, said.append)
    assert built.class_names == made.classes
    assert tuple(int((built.splits == split).sum()) for split in ("train", "val", "test")) == made.splits
    assert not list(root.glob(".*"))


def refusal(name: str, root: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(name, root, lambda line: None)
    first, *steps = str(caught.value).splitlines()
    assert first.startswith(f"{name}: ")
    if steps:
        assert first.endswith("or by hand:")
        assert steps[-1] == f"then: fedpgp data check {name} --root {root}"
        assert not any("ROOT" in step for step in steps)
    return first


def test_every_data_set_that_can_be_downloaded_is_tested() -> None:
    assert {name for name, one in SOURCES.items() if one.download is not Source.download} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_download_becomes_the_data_set(name: str, published, server: FileServer, tmp_path: Path) -> None:
    made = published(name)
    ready(name, tmp_path / "root", made)
    assert sorted(path for method, path, _ in server.requests if method == "GET") == sorted(paths(made))
    server.reset()
    ready(name, tmp_path / "root", made)
    assert not server.requests


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_connection_is_continued_at_once(name: str, published, server: FileServer, tmp_path: Path) -> None:
    made = published(name)
    for path in paths(made):
        server.faults[path] = Fault(cut=50, times=1)
    ready(name, tmp_path, made)
    assert all(server.starts(path) == [0, 50] for path in paths(made))


@pytest.mark.parametrize("name", NAMES)
def test_the_next_call_continues_what_was_interrupted(name: str, published, server: FileServer, tmp_path: Path) -> None:
    """The last file breaks off for good; files before it are not transferred again."""
    made = published(name)
    *before, last = paths(made)
    whole = server.files[last]
    server.files[last] = whole[:70]
    server.faults[last] = Fault(headers=(("Content-Length", str(len(whole))),), cut=70)
    told = refusal(name, tmp_path)
    assert "run this again, which continues" in told
    assert last in told
    assert [path.name for path in tmp_path.iterdir()] == [f".download-{name}"]
    kept = {path.name for path in (tmp_path / f".download-{name}").iterdir()}
    assert kept == {"lock", *(os.path.basename(path) for path in before), f"{os.path.basename(last)}.part"}
    server.reset()
    server.files[last] = whole
    ready(name, tmp_path, made)
    assert server.starts(last) == [70]
    assert {path for _, path, _ in server.requests} == {last}


@pytest.mark.parametrize("name", NAMES)
def test_another_file_than_the_published_one_is_not_used(
    name: str, published, server: FileServer, tmp_path: Path
) -> None:
    """A file with one byte changed, or the half of one; without a published checksum unpacking finds it."""
    made = published(name)
    for path in paths(made):
        whole = server.files[path]
        half = len(whole) // 2
        for other in (whole[:half], whole[:half] + bytes([whole[half] ^ 255]) + whole[half + 1 :]):
            server.files[path] = other
            told = refusal(name, tmp_path)
            assert os.path.basename(path) in told
            assert "run this again" in told
            assert list(tmp_path.iterdir()) == []
        server.files[path] = whole
    ready(name, tmp_path, made)


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_refuses_is_named(name: str, status: int, published, server: FileServer, tmp_path: Path) -> None:
    made = published(name)
    url = list(made.files)[-1]
    server.faults[urlsplit(url).path] = Fault(status)
    told = refusal(name, tmp_path / "root")
    assert url.partition("://")[2] in told
    assert f"HTTP status {status}" in told
    server.reset()
    ready(name, tmp_path / "root", made)


def test_a_moved_file_is_followed(published, server: FileServer, tmp_path: Path) -> None:
    made = published("dtd")
    (path,) = paths(made)
    server.files["/elsewhere"] = server.files[path]
    server.faults[path] = Fault(302, headers=(("Location", "/elsewhere"),))
    ready("dtd", tmp_path, made)


def test_a_server_without_ranges_sends_all_again(published, server: FileServer, tmp_path: Path) -> None:
    made = published("dtd")
    (path,) = paths(made)
    (kept := tmp_path / ".download-dtd").mkdir()
    (kept / "dtd-r1.0.1.tar.gz.part").write_bytes(b"x" * 40)
    server.ranges = False
    ready("dtd", tmp_path, made)
    assert server.starts(path) == [40]


@pytest.mark.parametrize("length", [40, 10_000_000])
def test_the_start_of_another_version_is_given_up(length: int, published, server: FileServer, tmp_path: Path) -> None:
    """It is longer than the file, or found by the checksum."""
    made = published("dtd")
    (path,) = paths(made)
    (kept := tmp_path / ".download-dtd").mkdir()
    (kept / "dtd-r1.0.1.tar.gz.part").write_bytes(b"x" * length)
    if length == 40:
        assert path in refusal("dtd", tmp_path)
    ready("dtd", tmp_path, made)
    assert server.starts(path) == [length, 0]


def test_nothing_listens(published, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published("dtd")
    monkeypatch.setattr(FileServer, "address", "http://127.0.0.1:1")
    told = refusal("dtd", tmp_path / "root")
    assert "dtd-r1.0.1.tar.gz" in told
    assert "Connection refused" in told
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_links_gets_a_copy(
    published, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    ready("flowers102", tmp_path, published("flowers102"))


def test_a_killed_process_leaves_what_the_next_one_uses(published, server: FileServer, tmp_path: Path) -> None:
    """A half of the archive, or all of it half unpacked, which torchvision would take for the whole."""
    made = published("dtd")
    (path,) = paths(made)
    whole, name = server.files[path], os.path.basename(path)
    for root, file, content in ((tmp_path / "a", f"{name}.part", whole[:60]), (tmp_path / "b", name, whole)):
        (hidden := root / ".download-dtd").mkdir(parents=True)
        (hidden / file).write_bytes(content)
        (hidden / "lock").write_text("1234")
        (hidden / "unpacked/dtd/dtd/images/banded").mkdir(parents=True)
        ready("dtd", root, made)
    assert server.starts(path) == [60]


def test_two_processes_do_not_download_at_once(published, tmp_path: Path) -> None:
    made = published("dtd")
    (hidden := tmp_path / ".download-dtd").mkdir()
    with locked(hidden / "lock"):
        assert refusal("dtd", tmp_path) == (f"dtd: another process is downloading it to {tmp_path}; wait for that one")
    ready("dtd", tmp_path, made)


@pytest.mark.parametrize("name", ["dtd", "sun397", "cifar10"])
def test_a_part_in_the_root_is_refused_before_the_transfer(
    name: str, published, server: FileServer, tmp_path: Path
) -> None:
    """It would be read instead of the download."""
    published(name)
    part = tmp_path / {"dtd": "images", "sun397": "SUN397", "cifar10": "data_batch_1"}[name]
    part.mkdir()
    assert refusal(name, tmp_path) == (f"{name}: {part} is there already but not usable; complete it or move it away")
    assert not server.requests


def test_a_root_that_is_a_file_is_refused(published, server: FileServer, tmp_path: Path) -> None:
    published("dtd")
    (tmp_path / "file").write_bytes(b"")
    told = refusal("dtd", tmp_path / "file/root")
    assert told == f"dtd: {tmp_path / 'file'} is not a folder that you may write to; give another --root"
    assert not server.requests


@pytest.mark.parametrize("when", ["transfer", "unpacking"])
def test_a_full_disk_costs_nothing_that_has_arrived(
    when: str, published, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = published("oxford_pets")
    images, annotations = paths(made)

    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if when == "transfer":
            patched.setattr("huggingface_hub.file_download.http_get", full)
        else:
            patched.setattr("tarfile.TarFile.makefile", full)
        assert refusal("oxford_pets", tmp_path / "root") == (
            f"oxford_pets: no space left in {tmp_path / 'root'}; free some and run this again, which continues"
        )
    assert server.starts(images) == ([] if when == "transfer" else [0])
    ready("oxford_pets", tmp_path / "root", made)
    assert server.starts(images) == server.starts(annotations) == [0]


FILL = """
import os, sys
from pathlib import Path
from fedpgp.data import transfers
folder, target = Path(sys.argv[2]), Path(sys.argv[2]) / "unpacked/there"
target.parent.mkdir()
try:
    transfers.fetch(sys.argv[1], target, folder)
except OSError as error:
    print(error.strerror, sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file()))
    (folder / "other").unlink()
    transfers.fetch(sys.argv[1], target, folder)
    print(target.stat().st_size)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_disk_that_is_really_full(server: FileServer, tmp_path: Path) -> None:
    """In a mount namespace of its own: 8 MiB, of which another file occupies 6."""
    server.reset()
    server.files = {"/there": bytes(4 * 2**20)}
    mount = f"mount -t tmpfs -o size=8m none {tmp_path} && head -c 6291456 /dev/zero > {tmp_path}/other"
    shell = f'{mount} && exec {sys.executable} -c "$0" {server.address}/there {tmp_path}'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, FILL], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("No space left on device [('other', 6291456)")
    assert second == str(4 * 2**20)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(name for name, one in SOURCES.items() if one.steps and name not in NAMES))
def test_the_steps_by_hand_name_all_that_is_needed(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        manifest.build(DataSettings(name=name, root=tmp_path))
    needed = re.findall(r"needs the (?:folder|file) (.*?) here", str(caught.value))
    with pytest.raises(DataError) as caught:
        prepare(name, tmp_path, lambda line: None)
    first, *steps, last = str(caught.value).splitlines()
    assert first == f"{name}: cannot be downloaded automatically; by hand:"
    assert last == f"then: fedpgp data check {name} --root {tmp_path}"
    targets = " ".join(step.rpartition(" -> ")[2] for step in steps)
    assert str(tmp_path) in targets
    assert needed
    assert [one for one in needed[0].split(", ") if one not in targets] == []
