"""Own the device on one thread: load, warm up, make what the scheduler hands out, close."""

import logging
import time
from collections.abc import Callable
from threading import Thread

from openklein.engine.pipeline import Pipeline
from openklein.engine.scheduler import Scheduler, Ticket
from openklein.engine.warm_up import warm_up
from openklein.errors import OperatorError, ShuttingDown

logger = logging.getLogger(__name__)

TAKE_TIMEOUT_S = 3600.0
LAST_STEP_S = 1.0  # how long `close` waits for the step that runs to end


class Worker:
    """Run requests one at a time; no error of a request, nor a failed load, ends the thread."""

    def __init__(self, load: Callable[[], Pipeline], scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.error: BaseException | None = None  # what the load or the warm-up raised
        self.estimate_s = 0.0  # how long a picture of 1024x1024 is expected to take, once ready
        self._load = load
        self._pipeline: Pipeline | None = None
        self._running: Ticket | None = None
        self._closing = False
        self._thread = Thread(target=self._run, name="openklein-worker", daemon=True)

    @property
    def ready(self) -> bool:
        """Say whether the model is loaded and warm, and requests are taken."""
        return self._pipeline is not None and not self._closing

    @property
    def pipeline(self) -> Pipeline:
        """Return the loaded pipeline; ask `ready` first."""
        assert self._pipeline is not None, "the worker is not ready"
        return self._pipeline

    def start(self) -> None:
        """Begin to load; returns at once."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Refuse what waits, let the running request finish within `timeout_s`, then fail it and stop.

        A load cannot be stopped and is not waited for: it goes on until the process ends.
        """
        self._closing = True
        self.scheduler.close()
        is_loading = self._pipeline is None and self.error is None
        if is_loading or not self._thread.is_alive():
            return
        self._thread.join(timeout_s)
        if running := self._running:
            running.fail(ShuttingDown("The server shut down before the picture was finished."))
            self._thread.join(LAST_STEP_S)

    def _run(self) -> None:
        started = time.monotonic()
        try:
            pipeline = self._load()
            self.estimate_s = warm_up(pipeline)
        except BaseException as error:
            logger.error("The model could not be loaded.", exc_info=not isinstance(error, OperatorError))
            self.error = error
        else:
            self._pipeline = pipeline
            logger.info("%s is loaded and warm after %.1f s", pipeline.card.id, time.monotonic() - started)
        while not self._closing:
            if ticket := self.scheduler.take(TAKE_TIMEOUT_S):
                self._running = ticket
                self._serve(ticket)
                self._running = None

    def _serve(self, ticket: Ticket) -> None:
        ticket.timings["queue"] = time.monotonic() - ticket.submitted_at
        if self.error is not None:
            return ticket.fail(self.error)
        try:
            result = self.pipeline.generate(ticket.request, lambda _: ticket.check(), ticket.timings)
        except BaseException as error:  # noqa: BLE001 - a border: the error goes to whoever waits for the picture
            return ticket.fail(error)
        ticket.finish(result)
