"""Real services on this machine: an S3 API (moto's server), PostgreSQL, and MLflow's tracking server on both."""

from __future__ import annotations

import base64
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from ports import free_ports

BUCKET, REGION = "bucket", "us-east-1"
FULL_ACCESS = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
NO_WRITES = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"}
READY_SECONDS = 120
POSTGRESQL = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
POSTGRES_USER = "postgres"
NEEDS_S3 = pytest.mark.skipif(find_spec("moto") is None, reason="needs moto[server], an S3 API")
NEEDS_POSTGRESQL = pytest.mark.skipif(
    POSTGRESQL is None or find_spec("psycopg2") is None, reason="needs Debian's postgresql, and psycopg2"
)


@dataclass(frozen=True)
class Key:
    """An access key of an IAM user."""

    user: str
    id: str
    secret: str

    @property
    def environment(self):
        """The variables with which the tools of AWS find it."""
        return {"AWS_ACCESS_KEY_ID": self.id, "AWS_SECRET_ACCESS_KEY": self.secret, "AWS_DEFAULT_REGION": REGION}


class S3:
    """An S3 API that checks signatures and policies, with an empty bucket; `admin` may do everything."""

    def __init__(self, port):
        self.port = port
        self._key = Key("setup", "setup", "setup")
        self.admin = self._key = self.user("admin", {"Effect": "Allow", "Action": "*", "Resource": "*"})
        self._client("s3").create_bucket(Bucket=BUCKET)
        headers = {"Content-Type": "text/plain"}
        enforce = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", b"0", headers, method="POST")
        urllib.request.urlopen(enforce, timeout=10).close()

    @property
    def endpoint(self):
        """The address of the service."""
        return f"http://127.0.0.1:{self.port}"

    def uri(self, folder, port=None):
        """The URI of a folder, for `pyarrow.fs`; `port` is that of a proxy."""
        where = f"scheme=http&endpoint_override=127.0.0.1:{port or self.port}&region={REGION}"
        return f"s3://{BUCKET}/{folder}?{where}"

    def user(self, name, *statements):
        """Create a user with a policy; gives a key of this user."""
        iam = self._client("iam")
        iam.create_user(UserName=name)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        made = Key(name, key["AccessKeyId"], key["SecretAccessKey"])
        self.permit(made, *statements)
        return made

    def permit(self, key, *statements):
        """Replace the policy of a user."""
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        self._client("iam").put_user_policy(UserName=key.user, PolicyName="policy", PolicyDocument=policy)

    def keys(self, folder):
        """The keys of the objects in a folder."""
        pages = self._client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{folder}/")
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def read(self, key):
        """The content of an object."""
        return self._client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put(self, key, content):
        """Write an object."""
        self._client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)

    def _client(self, service):
        import boto3

        return boto3.client(
            service, endpoint_url=self.endpoint, region_name=REGION, aws_access_key_id=self._key.id,
            aws_secret_access_key=self._key.secret,
        )  # fmt: skip


@contextmanager
def serving_s3():
    """Run moto's server."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, f"http://127.0.0.1:{port}/moto-api/data.json"):
        yield S3(port)


class PostgreSQL:
    """A cluster of its own in a temporary folder, with the password of its only user."""

    def __init__(self, folder, port, password):
        self._folder, self.port, self.password = folder, port, password

    @property
    def uri(self):
        """The URI of the database, with its user and password."""
        return f"postgresql+psycopg2://{POSTGRES_USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def create(self):
        """Write the files of the cluster."""
        secret = self._folder / "password"
        secret.write_text(self.password)
        _as_postgres("initdb", f"--pgdata={self._folder}/data", f"--username={POSTGRES_USER}", "--auth=scram-sha-256",
                     f"--pwfile={secret}", "--no-sync")  # fmt: skip

    def start(self):
        """Start the service, and wait until it accepts connections."""
        options = f"-p {self.port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("start", f"--options={options}", f"--log={self._folder}/log.txt")

    def stop(self):
        """Stop the service, and cut its connections."""
        self._control("stop", "--mode=fast")

    def query(self, sql, *values):
        """The rows of a query."""
        import psycopg2

        with closing(psycopg2.connect(self.uri.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall()

    def text(self):
        """The content of all tables."""
        names = self.query("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'")
        return "\n".join(row[0] for (name,) in names for row in self.query(f'SELECT t::text FROM "{name}" t'))

    def _control(self, *arguments):
        _as_postgres("pg_ctl", f"--pgdata={self._folder}/data", "--wait", *arguments)


@contextmanager
def serving_postgresql(password):
    """Run PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="fedpgp-postgresql-") as name:
        if os.geteuid() == 0:
            shutil.chown(name, POSTGRES_USER)
        service = PostgreSQL(Path(name), free_ports(1)[0], password)
        service.create()
        service.start()
        try:
            yield service
        finally:
            service.stop()


@dataclass(frozen=True)
class TrackingServer:
    """MLflow's server with basic authentication; `admin` is the name of the user who may do everything."""

    port: int
    password: str
    admin: str = "admin"

    @property
    def uri(self):
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def add_user(self, name, password):
        """Create a user, who may read everything and write what is their own."""
        content = json.dumps({"username": name, "password": password}).encode()
        token = base64.b64encode(f"{self.admin}:{self.password}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/users/create", content, headers, method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def serving_mlflow(database, s3, folder, password):
    """Run MLflow's server on a database, with its artifacts in the folder of a bucket."""
    with tempfile.TemporaryDirectory(prefix="fedpgp-mlflow-") as name:
        settings = {
            "default_permission": "READ", "database_uri": f"sqlite:///{name}/users.db",
            "admin_username": TrackingServer.admin, "admin_password": password, "auth_cache_ttl_seconds": 600,
        }  # fmt: skip
        lines = ["[mlflow]", *(f"{key} = {value}" for key, value in settings.items())]
        (Path(name) / "auth.ini").write_text("\n".join(lines))
        environment = {
            **os.environ, **s3.admin.environment, "MLFLOW_S3_ENDPOINT_URL": s3.endpoint,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": password, "MLFLOW_AUTH_CONFIG_PATH": f"{name}/auth.ini",
            "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }  # fmt: skip
        (port,) = free_ports(1)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", database.uri, "--artifacts-destination", f"s3://{BUCKET}/{folder}",
            "--app-name", "basic-auth",
        ]  # fmt: skip
        server = TrackingServer(port, password)
        with running(command, f"{server.uri}/health", env=environment, cwd=name):
            yield server


def _as_postgres(program, *arguments):
    """Run a program of PostgreSQL as a user that is not root, which it refuses."""
    user = pwd.getpwnam(POSTGRES_USER).pw_uid if os.geteuid() == 0 else None
    done = subprocess.run(
        [str(POSTGRESQL / program), *arguments], user=user, cwd="/", stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=READY_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@contextmanager
def running(command, ready, **options):
    """A server in a process group of its own, from the first answer to `ready` to the end of the block."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _answers(ready):
                log.seek(0)
                assert process.poll() is None, log.read()
                assert time.monotonic() < deadline, log.read()
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
