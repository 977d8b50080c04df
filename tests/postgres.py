"""Run a real PostgreSQL server for the tests, in a temporary folder and on a socket there."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psycopg

DEBIAN = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)  # not on the PATH
# Nothing has to outlive the tests, so nothing has to reach the disk.
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=16MB")
START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server, which is told by the folder of its socket."""

    folder: Path
    numbers: Iterator[int]

    def make_database(self) -> str:
        """Make an empty schema, which is all that its URL shows; a database takes 300 files, and a second."""
        name = f"tests_{next(self.numbers)}"
        with psycopg.connect(self._address(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{self._address()}&options=-csearch_path%3D{name}"

    def answers(self) -> bool:
        try:
            psycopg.connect(self._address()).close()
        except psycopg.OperationalError:
            return False
        return True

    def _address(self) -> str:
        return f"postgresql://tests@/postgres?host={self.folder}"


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *DEBIAN]))


@contextmanager
def running_postgres(initdb: str, postgres: str) -> Iterator[Postgres]:
    # The server refuses to run as root. The user that stands in must reach the folder, so it is not one of pytest's.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="openklein-"))
    try:
        if user is not None:
            shutil.chown(folder, user)
        make = [initdb, "-D", f"{folder}/data", "-U", "tests", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, user=user, cwd=folder)
        options = [part for option in ("listen_addresses=", *FAST) for part in ("-c", option)]
        start = [postgres, "-D", f"{folder}/data", "-k", str(folder), *options]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(start, stdout=log, stderr=log, user=user, cwd=folder)
        server = Postgres(folder, count())
        try:
            give_up_at = time.monotonic() + START_TIMEOUT_S
            while not server.answers():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < give_up_at, (folder / "log").read_text()
                time.sleep(0.05)
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast stop, which waits for no client
            process.wait(timeout=30)
    finally:
        shutil.rmtree(folder)
