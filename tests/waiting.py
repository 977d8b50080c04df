"""Wait for what another thread or process is about to do."""

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    give_up_at = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < give_up_at, "waited too long"
        time.sleep(0.005)
