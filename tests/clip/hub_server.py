"""A server on this machine that answers like the Hugging Face hub: files of repositories, their digests, faults."""

from __future__ import annotations

import re
from hashlib import sha1, sha256

from file_server import FileServer, Handler

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(Handler):
    """Answers `/OWNER/MODEL/resolve/main/FILE` with the headers of the hub; large files have a SHA-256."""

    def headers_of(self, path, content):
        """Return the headers of a file, or what the hub says about a missing file, revision or repository."""
        match = re.fullmatch(r"(/[^/]+/[^/]+)/resolve/([^/]+)/.+", path)
        if match is None or not any(name.startswith(f"{match[1]}/") for name in self.server.files):
            return {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        if match[2] not in ("main", COMMIT):
            return {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {match[2]}"}
        if content is None:
            return {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": COMMIT}
        if path.endswith(".json"):
            digest = sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"'}
        digest = self.server.digests.get(path) or sha256(content).hexdigest()
        return {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "ETag": "x",
        }

    def find(self, path):
        """Return the content of a file of the only commit, or None."""
        return self.server.files.get(path.replace(f"/resolve/{COMMIT}/", "/resolve/main/"))


class HubServer(FileServer):
    """Serves files at `path_of`; `digests` are published instead of the true ones."""

    def __init__(self):
        super().__init__(HubHandler)
        self.digests: dict[str, str] = {}

    def reset(self):
        """Forget faults, requests and digests."""
        super().reset()
        self.digests.clear()


def path_of(repository, file):
    """Path of a file on the server."""
    return f"/{repository}/resolve/main/{file}"
