"""Know a running server from outside, as its user does."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent.parent
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server process of the installed package, its output in files."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def url(self) -> str:
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", self.log)
        assert found, f"no address in the log:\n{self.log}"
        return found[1]

    @property
    def key(self) -> str:
        """Read the key that the first start prints, which is a moment after the model is ready."""
        wait_until(lambda: "klein_" in self.stdout)
        (key, *_) = re.findall(r"klein_[\w-]{43}", self.stdout)
        return str(key)

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    def wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < give_up_at:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            if is_ready(self):
                return
            time.sleep(0.1)
        raise AssertionError(f"the server was not ready after {READY_TIMEOUT_S} s:\n{self.log}")


@contextmanager
def running(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[Server]:
    """Run a server in an empty folder, which takes its output; end it with the context."""
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env={**clean_environment(), **env}, stdout=stdout, stderr=stderr
        )
    try:
        yield Server(process, folder)
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_ready(server: Server) -> bool:
    if "listening on" not in server.log:
        return False
    try:
        return httpx.get(f"{server.url}/health/ready", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def clean_environment() -> dict[str, str]:
    """Give the environment of someone who never saw this checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OPENKLEIN_", "PYTHON"))}


class StartServer(Protocol):
    """Start a server on a data folder; it ends with the context."""

    def __call__(
        self, data_dir: Path, *flags: str, env: dict[str, str] | None = None
    ) -> AbstractContextManager[Server]: ...
