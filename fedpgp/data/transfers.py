"""Transfers what torchvision's data sets download: a call continues where an earlier one was interrupted."""

import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedpgp.core.errors import DataError
from fedpgp.core.files import is_full
from fedpgp.core.text import one_line

HEADERS = {"Accept-Encoding": "identity"}
"""Archives are wanted as they are: a server that compresses them once more could not continue at a byte."""
PART = ".part"
"""End of a file's name until it is complete."""
OUT_OF_RANGE = 416
"""HTTP status: the file has no bytes after those that are here already."""


class TransferError(DataError):
    """A file could not be transferred. What has arrived of it is kept."""


class DamagedError(DataError):
    """A file is not the published one, or cannot be unpacked."""


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Let torchvision transfer files by `fetch`, and unpack archives only below its target folder, inside the block.

    Raises `TransferError`, `DamagedError` with the URL of the file, or `OSError` if the disk is full.

    Args:
        folder: keeps the files, whole or in part, for the next call.
    """
    from torchvision.datasets import utils

    urls = []

    def transfer(path: str, url: str) -> None:
        urls.append(url)
        fetch(url, Path(path), folder)

    replaced: dict[tuple[Any, str], Any] = {
        (utils, "_is_remote_location_available"): lambda: True,  # torchvision's own place for another transfer
        (utils, "_download_file_from_remote_location"): transfer,
        (tarfile.TarFile, "extraction_filter"): staticmethod(tarfile.data_filter),
    }
    before = {(owner, name): getattr(owner, name) for owner, name in replaced}
    try:
        for (owner, name), value in replaced.items():
            setattr(owner, name, value)
        yield
    except Exception as error:
        full = isinstance(error, OSError) and is_full(error)
        if isinstance(error, TransferError) or full or not urls:
            raise
        raise DamagedError(f"{urls[-1]}: {one_line(error)}") from error
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


def fetch(url: str, path: Path, folder: Path) -> None:
    """Write the file at `url` to `path`, after what `folder` has of it; a link, where the file system has links.

    A cut connection is continued five times, and after that by the next call. Raises `TransferError`, or `OSError` if
    the disk is full; `folder` keeps what has arrived.
    """
    whole = folder / path.name
    if not whole.exists():
        _complete(url, whole)
    try:
        os.link(whole, path)
    except OSError:
        shutil.copyfile(whole, path)


def _complete(url: str, whole: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    part = whole.with_name(whole.name + PART)
    try:
        with part.open("ab") as file:
            here = file.tell()
            http_get(url, file, resume_size=here, headers=HEADERS, displayed_filename=whole.name)
            file.flush()
            os.fsync(file.fileno())
        part.replace(whole)
    except Exception as error:  # of networks, proxies and servers
        if isinstance(error, OSError) and is_full(error):
            raise
        if isinstance(error, HfHubHTTPError):
            if error.response.status_code == OUT_OF_RANGE and here:
                part.unlink()  # of another version of the file
                return _complete(url, whole)
            raise TransferError(f"{url}: HTTP status {error.response.status_code}") from error
        raise TransferError(f"{url}: {one_line(error)}") from error
    finally:
        if part.exists() and not part.stat().st_size:
            part.unlink()
