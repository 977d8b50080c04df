import threading
import time
from concurrent.futures import Future

import pytest
from PIL import Image

from openklein.engine.scheduler import Scheduler, Ticket
from openklein.engine.types import ImageRequest, ImageResult
from openklein.errors import Cancelled, DeadlineExceeded, QueueFull, ShuttingDown

REQUEST = ImageRequest("a red apple", 1024, 1024, seed=1)
RESULT = ImageResult(Image.new("RGB", (8, 8)), "klein-mini", seed=1)


def in_a_minute() -> float:
    return time.monotonic() + 60


def submit(scheduler: Scheduler, group: str = "", *, deadline: float | None = None) -> Ticket:
    return scheduler.submit(REQUEST, deadline=deadline or in_a_minute(), group=group)


class TestOrder:
    def test_first_in_first_out(self) -> None:
        scheduler = Scheduler()
        tickets = [submit(scheduler) for _ in range(3)]
        assert [scheduler.take(0) for _ in range(4)] == [*tickets, None]

    def test_groups_take_turns(self) -> None:
        scheduler = Scheduler()
        for group in ["a", "a", "a", "b", "c", "b"]:
            submit(scheduler, group)
        taken = [scheduler.take(0) for _ in range(6)]
        assert [ticket.group for ticket in taken if ticket] == ["a", "b", "c", "a", "b", "a"]

    def test_a_group_that_was_just_served_waits_for_the_others(self) -> None:
        scheduler = Scheduler()
        submit(scheduler, "busy")
        submit(scheduler, "quiet")
        assert scheduler.take(0) is not None
        submit(scheduler, "busy")
        ticket = scheduler.take(0)
        assert ticket is not None and ticket.group == "quiet"


class TestLimits:
    def test_the_queue_is_bounded(self) -> None:
        scheduler = Scheduler(capacity=2)
        submit(scheduler, "a")
        submit(scheduler, "b")
        assert scheduler.depth == 2
        with pytest.raises(QueueFull, match="2 requests"):
            submit(scheduler)
        scheduler.take(0)
        submit(scheduler)

    def test_settled_requests_take_no_room(self) -> None:
        scheduler = Scheduler(capacity=2)
        submit(scheduler).future.cancel()
        submit(scheduler, deadline=time.monotonic() - 1)
        assert scheduler.depth == 0
        submit(scheduler)
        submit(scheduler)

    def test_an_expired_request_is_failed_and_not_handed_out(self) -> None:
        scheduler = Scheduler()
        expired, alive = submit(scheduler, deadline=time.monotonic() + 0.1), submit(scheduler)
        time.sleep(0.12)
        assert scheduler.take(0) is alive
        with pytest.raises(DeadlineExceeded, match="seconds allowed"):
            expired.future.result(0)

    def test_a_cancelled_request_is_not_handed_out(self) -> None:
        scheduler = Scheduler()
        cancelled, alive = submit(scheduler), submit(scheduler)
        cancelled.future.cancel()  # what asyncio does to it when a client leaves
        assert scheduler.take(0) is alive
        assert scheduler.take(0) is None


class TestTake:
    def test_nothing_comes_within_the_timeout(self) -> None:
        started = time.monotonic()
        assert Scheduler().take(0.05) is None
        assert 0.04 < time.monotonic() - started < 5

    def test_a_waiting_taker_is_woken(self) -> None:
        scheduler = Scheduler()
        taken: Future[Ticket | None] = Future()
        thread = threading.Thread(target=lambda: taken.set_result(scheduler.take(30)))
        thread.start()
        ticket = submit(scheduler)
        assert taken.result(5) is ticket
        thread.join()

    def test_every_ticket_goes_to_one_taker(self) -> None:
        scheduler = Scheduler(capacity=200)
        tickets = [submit(scheduler, str(i % 7)) for i in range(200)]
        taken: list[Ticket] = []

        def take_all() -> None:
            while ticket := scheduler.take(0):
                taken.append(ticket)

        threads = [threading.Thread(target=take_all) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(id, taken)) == sorted(map(id, tickets))


class TestClose:
    def test_waiting_requests_fail_and_new_ones_are_refused(self) -> None:
        scheduler = Scheduler()
        waiting = submit(scheduler)
        scheduler.close()
        with pytest.raises(ShuttingDown, match="not begun"):
            waiting.future.result(0)
        with pytest.raises(ShuttingDown, match="no new requests"):
            submit(scheduler)
        assert scheduler.depth == 0

    def test_a_waiting_taker_is_released(self) -> None:
        scheduler = Scheduler()
        taken: Future[Ticket | None] = Future()
        thread = threading.Thread(target=lambda: taken.set_result(scheduler.take(30)))
        thread.start()
        scheduler.close()
        assert taken.result(5) is None
        thread.join()


class TestTicket:
    def test_check_passes_while_the_picture_is_wanted(self) -> None:
        Ticket(REQUEST, in_a_minute()).check()

    def test_check_stops_a_cancelled_request(self) -> None:
        ticket = Ticket(REQUEST, in_a_minute())
        ticket.future.cancel()
        with pytest.raises(Cancelled):
            ticket.check()

    def test_check_stops_a_late_request(self) -> None:
        now = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within the 2\.5 seconds allowed"):
            Ticket(REQUEST, deadline=now, submitted_at=now - 2.5).check()

    def test_whoever_settles_first_wins(self) -> None:
        ticket = Ticket(REQUEST, in_a_minute())
        ticket.finish(RESULT)
        ticket.fail(ValueError("too late"))
        assert ticket.future.result(0) is RESULT

        ticket = Ticket(REQUEST, in_a_minute())
        ticket.fail(ShuttingDown("over"))
        ticket.finish(RESULT)
        assert isinstance(ticket.future.exception(0), ShuttingDown)
