"""Fetches files of a model's repository on the Hugging Face hub, or takes them from the hub's cache."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from fedpgp.core.errors import BackboneError
from fedpgp.core.files import is_full
from fedpgp.core.text import one_line, redacted

SHA256 = re.compile("[0-9a-f]{64}")
"""Name of a large file's content in the cache, its digest; that of a small file is shorter."""
FORBIDDEN, NOT_FOUND = 403, 404


def find(what: str, repository: str, *files: str) -> Path | None:
    """Return where the first of the files that the repository has is on this machine; None: it has none of them.

    If the hub cannot be reached, it is the first of them in the cache. A file that exists but cannot be transferred is
    never replaced by another one.

    Args:
        what: the model, for messages
        repository: OWNER/MODEL; its branch `main` is used
        files: in order of preference

    Raises:
        BackboneError: the repository or the hub cannot be used now, or what was fetched is not what was published;
            then nothing of it stays in the cache.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError

    for file in files:
        try:
            return _fetched(repository, file)
        except Exception as error:  # networks, hubs and proxies raise anything
            if _is_absent(error, repository, file):
                continue
            if isinstance(error, LocalEntryNotFoundError):
                cached = [try_to_load_from_cache(repository, other) for other in files]
                if found := [path for path in cached if isinstance(path, str)]:
                    return Path(found[0])
            raise BackboneError(
                f"backbone.weights: {what} cannot be fetched: {redacted(_explained(error, repository))}, or download "
                "the checkpoint elsewhere and give backbone.weights=FILE with the open_clip name and "
                "backbone.activation=gelu or quick_gelu"
            ) from error
    return None


def _fetched(repository: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(repository, file)
    path = Path(hf_hub_download(repository, file))
    content = path.parent / os.readlink(path) if path.is_symlink() else path
    if known == str(path) or not SHA256.fullmatch(content.name):
        return path
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != content.name:
        content.unlink()
        path.unlink()
        raise OSError(f"{file} arrived damaged: SHA-256 {digest} instead of {content.name}")
    return path


def _is_absent(error: Exception, repository: str, file: str) -> bool:
    """Whether the repository exists and lacks the file, according to the hub or, offline, to the cache."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError):  # the hub was not reached, or did not say which it is
        no_file = _status(error) == NOT_FOUND
        cause = isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError)
        return (no_file and not cause) or try_to_load_from_cache(repository, file) is _CACHED_NO_EXIST
    return isinstance(error, EntryNotFoundError)


def _status(error: Exception) -> int | None:
    """The HTTP status that caused an error."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return None if response is None else response.status_code


def _explained(error: Exception, repository: str) -> str:
    """Say what is wrong, and what to do about it."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page, status = f"{constants.ENDPOINT}/{repository}", _status(error)
    cause = error
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        cause = error.__cause__  # the answer of the hub, where the error says that the cache has no file
    token = "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, OSError) and is_full(error):
        return f"no space left in {constants.HF_HUB_CACHE}; free some, set HF_HOME to a folder on another disk"
    if isinstance(cause, HFValidationError):
        return f"{repository!r} is not OWNER/MODEL; give such an id"
    if isinstance(cause, OfflineModeIsEnabled):
        return f"it is not in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; unset it, copy that folder here"
    if isinstance(cause, GatedRepoError) or status == FORBIDDEN:
        return f"access to {page} is refused; accept the terms there and {token}"
    if isinstance(cause, RepositoryNotFoundError):
        return f"there is no {page}, or it is private; check the name, {token}"
    if status is not None:
        return f"{page} answers with HTTP status {status}; try again later"
    return f"{page}: {one_line(cause).partition('. ')[0][:200]}; check the network and HF_ENDPOINT, try again"
