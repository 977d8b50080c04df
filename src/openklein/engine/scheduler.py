"""Hold the one bounded queue: deadlines, turns by group, cancelling."""

import time
from collections import OrderedDict, deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition

from openklein.engine.types import ImageRequest, ImageResult
from openklein.errors import Cancelled, DeadlineExceeded, QueueFull, ShuttingDown


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One request on its way; times are `time.monotonic` seconds.

    Whoever settles the future first wins, and settling it from anywhere stops the work at its next check.
    """

    request: ImageRequest
    deadline: float
    group: str = ""
    submitted_at: float = field(default_factory=time.monotonic)
    future: Future[ImageResult] = field(default_factory=Future)
    timings: dict[str, float] = field(default_factory=dict)  # seconds in the queue and of each stage that ended

    def finish(self, result: ImageResult) -> None:
        """Hand over the picture, unless the request is settled already."""
        with suppress(InvalidStateError):
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Hand over an error, unless the request is settled already."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded when there is no reason to go on."""
        if self.future.done():
            raise Cancelled("The request is settled; its picture is no longer wanted.")
        if time.monotonic() >= self.deadline:
            allowed_s = self.deadline - self.submitted_at
            raise DeadlineExceeded(f"The picture was not finished within the {allowed_s:.1f} seconds allowed.")


class Scheduler:
    """Queue tickets and hand them out one group after the other, each group in its own order."""

    def __init__(self, capacity: int = 64) -> None:
        self.capacity = capacity
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()  # the group whose turn it is first
        self._changed = Condition()
        self._closed = False

    @property
    def depth(self) -> int:
        """Count the requests that wait."""
        with self._changed:
            self._drop_settled()
            return sum(map(len, self._queues.values()))

    def submit(self, request: ImageRequest, *, deadline: float, group: str = "") -> Ticket:
        """Queue a request until `deadline` (`time.monotonic` seconds); raises QueueFull or ShuttingDown."""
        ticket = Ticket(request, deadline, group)
        with self._changed:
            if self._closed:
                raise ShuttingDown("The server is shutting down and takes no new requests.")
            if self.depth >= self.capacity:
                raise QueueFull(f"The queue is full: {self.capacity} requests wait already; try again shortly.")
            self._queues.setdefault(group, deque()).append(ticket)
            self._changed.notify()
        return ticket

    def take(self, timeout: float) -> Ticket | None:
        """Wait up to `timeout` seconds for the next ticket; None when there is none, at once when closed."""
        give_up_at = time.monotonic() + timeout
        with self._changed:
            while not self.depth:
                remaining = give_up_at - time.monotonic()
                if self._closed or remaining <= 0:
                    return None
                self._changed.wait(remaining)
            group, queue = next(iter(self._queues.items()))
            ticket = queue.popleft()
            self._queues.move_to_end(group)
            return ticket

    def close(self) -> None:
        """Take no more requests and fail those that wait with ShuttingDown."""
        with self._changed:
            self._closed = True
            for ticket in (ticket for queue in self._queues.values() for ticket in queue):
                ticket.fail(ShuttingDown("The server is shutting down; the request was not begun."))
            self._changed.notify_all()

    def _drop_settled(self) -> None:
        for group, queue in list(self._queues.items()):
            self._queues[group] = deque(ticket for ticket in queue if _is_alive(ticket))
            if not self._queues[group]:
                del self._queues[group]


def _is_alive(ticket: Ticket) -> bool:
    try:
        ticket.check()
    except (Cancelled, DeadlineExceeded) as error:
        ticket.fail(error)
        return False
    return True
