"""Race processes for one database; run as a program this is one of them.

A racer opens the database and then tries to reserve so many times with each key.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from openklein.errors import LimitExceeded
from openklein.storage.database import Database
from openklein.storage.limits import reserve
from tests.storage.rows import reservation

ROOT = Path(__file__).parent.parent.parent


def race(url: str, *key_ids: str, processes: int, attempts: int = 0) -> list[int]:
    """Start processes together, and count how many of their attempts went through for each key."""
    racers = [start_racer(url, str(attempts), *key_ids) for _ in range(processes)]
    for racer in racers:  # which takes its imports out of the race
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * processes, outputs
    counts = [map(int, output.split()) for output, _ in outputs]
    return [sum(of_one_key) for of_one_key in zip(*counts, strict=True)]


def start_racer(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.storage.race", *arguments]
    env = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def main(url: str, attempts: str, *key_ids: str) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    with closing(Database(url)) as database, ThreadPoolExecutor(8) as threads:

        def attempt(key_id: str) -> bool:
            try:
                reserve(database, reservation(key_id))
            except LimitExceeded:
                return False
            return True

        for key_id in key_ids:
            print(sum(threads.map(attempt, [key_id] * int(attempts))))


if __name__ == "__main__":
    main(*sys.argv[1:])
