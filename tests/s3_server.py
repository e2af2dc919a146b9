"""A server on this machine that answers like S3: buckets and objects in memory, strongly consistent."""

from __future__ import annotations

import re
import time
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import file_server

KEY, SECRET = "reader", "planted-S3CRET"


class Server(ThreadingHTTPServer):
    """Holds `objects` by bucket and key; `refusal`, a status and S3's code, is the answer to everything if set."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.objects: dict[str, dict[str, tuple[bytes, float]]] = {"bucket": {}}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.refusal: tuple[int, str] | None = None
        self.requests: list[str] = []

    def uri(self, folder, bucket="bucket", secret=SECRET):
        """The URI of a folder, with credentials."""
        where = f"scheme=http&endpoint_override=127.0.0.1:{self.server_port}&region=us-east-1"
        return f"s3://{KEY}:{secret}@{bucket}/{folder}?{where}"


def serving(port=0):
    """Run the server in a thread."""
    return file_server.serving(lambda: Server(port))


class Handler(BaseHTTPRequestHandler):
    """The requests that pyarrow sends."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments):
        """Print nothing."""

    def _route(self):
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        self.query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        self.body = self._body()
        self.server.requests.append(f"{self.command} {key}")
        if self.server.refusal:
            self._error(*self.server.refusal)
        elif f"Credential={KEY}/" not in self.headers.get("Authorization", ""):
            self._error(403, "AccessDenied")
        elif bucket not in self.server.objects:
            self._error(404, "NoSuchBucket")
        else:
            getattr(self, f"_{self.command.lower()}")(self.server.objects[bucket], key)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _route

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return content
        plain = b""
        while (size := int(re.match(rb"[0-9a-fA-F]+", content)[0], 16)) > 0:
            start = content.index(b"\r\n") + 2
            plain += content[start : start + size]
            content = content[start + size + 2 :]
        return plain

    def _answer(self, status=200, body=b"", **headers):
        self.send_response(status)
        length = headers.pop("length", len(body))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")  # so that none outlives the server
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _error(self, status, code):
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _about(self, content, when):
        return {"Last_Modified": formatdate(when, usegmt=True), "ETag": f'"{md5(content).hexdigest()}"'}

    def _head(self, objects, key):
        if key and key not in objects:
            return self._answer(404)
        content, when = objects[key] if key else (b"", 0)
        return self._answer(length=len(content), **self._about(content, when))

    def _get(self, objects, key):
        if not key:
            return self._list(objects)
        if key not in objects:
            return self._error(404, "NoSuchKey")
        content, when = objects[key]
        if (span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))) is None:
            return self._answer(200, content, **self._about(content, when))
        first, last = int(span[1]), min(int(span[2]), len(content) - 1)
        where = {"Content_Range": f"bytes {first}-{last}/{len(content)}"}
        return self._answer(206, content[first : last + 1], **where, **self._about(content, when))

    def _list(self, objects):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter", "")
        rows, folders = [], {}
        for key, (content, when) in sorted(objects.items()):
            if not key.startswith(prefix):
                continue
            head, mark, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if mark:
                folders[prefix + head + delimiter] = None
                continue
            modified = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(when))
            rows.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>{modified}</LastModified>"
                f"<Size>{len(content)}</Size></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders]
        text = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>{''.join(rows)}"
        return self._answer(200, f"<ListBucketResult>{text}</ListBucketResult>".encode())

    def _put(self, objects, key):
        if "partNumber" in self.query:
            self.server.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.body
        else:
            objects[key] = self.body, time.time()
        return self._answer(ETag=f'"{md5(self.body).hexdigest()}"')

    def _post(self, objects, key):
        if "uploads" in self.query:
            name = quote(f"{key}-{len(self.server.uploads)}", safe="")
            self.server.uploads[name] = {}
            text = f"<UploadId>{name}</UploadId>"
            return self._answer(200, f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>".encode())
        parts = self.server.uploads.pop(self.query["uploadId"])
        objects[key] = b"".join(parts[number] for number in sorted(parts)), time.time()
        return self._answer(200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")

    def _delete(self, objects, key):
        objects.pop(key, None)
        return self._answer(204)
