"""Try to reserve many times from one process, for test_limits; prints how many attempts went through for each key.

Arguments: database URL, attempts, key ids. The attempts begin once a line comes in, so that processes race.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from openklein.errors import LimitExceeded
from openklein.storage.database import Database
from openklein.storage.limits import reserve
from tests.storage.rows import reservation

url, attempts, *key_ids = sys.argv[1:]
database = Database(url)


def attempt(key_id: str) -> bool:
    try:
        reserve(database, reservation(key_id))
    except LimitExceeded:
        return False
    return True


print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(8) as threads:
    for key_id in key_ids:
        print(sum(threads.map(attempt, [key_id] * int(attempts))))
