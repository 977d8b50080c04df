import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from PIL import Image, ImageChops

from openklein.engine.pipeline import Pipeline
from openklein.engine.scheduler import Scheduler, Ticket
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.worker import Worker
from openklein.errors import DeadlineExceeded, PromptTooLong, ShuttingDown, WeightsMissing
from tests import tiny
from tests.waiting import wait_until

REQUEST = ImageRequest("a red apple", 128, 128, seed=1)


class HeldPipeline(Pipeline):
    """The parts of another pipeline, which can be held before the first step."""

    def __init__(self, other: Pipeline) -> None:
        self.__dict__.update(other.__dict__)

    def hold(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def generate(
        self,
        request: ImageRequest,
        on_step: Callable[[Progress], None] = lambda _: None,
        timings: dict[str, float] | None = None,
    ) -> ImageResult:
        def wait_then_step(progress: Progress) -> None:
            if progress.step == 0 and hasattr(self, "release"):
                self.entered.set()
                assert self.release.wait(20)
            on_step(progress)

        return super().generate(request, wait_then_step, timings)


@dataclass(slots=True)
class Bench:
    """A worker with its parts."""

    worker: Worker
    pipeline: HeldPipeline

    def submit(self, request: ImageRequest = REQUEST) -> Ticket:
        return self.worker.scheduler.submit(request, deadline=time.monotonic() + 60)

    @contextmanager
    def held(self) -> Iterator[Ticket]:
        """Hold the worker in the middle of a picture."""
        self.pipeline.hold()
        ticket = self.submit()
        assert self.pipeline.entered.wait(20)
        yield ticket
        self.pipeline.release.set()


@pytest.fixture
def bench(tiny_pipeline: Pipeline) -> Iterator[Bench]:
    pipeline = HeldPipeline(tiny_pipeline)
    worker = Worker(lambda: pipeline, Scheduler())
    worker.start()
    wait_until(lambda: worker.ready)
    yield Bench(worker, pipeline)
    worker.close(timeout_s=20)


class TestPictures:
    def test_a_picture_is_made(self, bench: Bench, tiny_pipeline: Pipeline) -> None:
        result = bench.submit().future.result(20)
        expected = tiny_pipeline.generate(REQUEST)
        assert not ImageChops.difference(result.image, expected.image).getbbox()
        assert (result.model, result.seed) == ("klein-mini", 1)
        assert list(result.timings) == ["queue", "text", "denoise", "decode"]
        assert 0 <= result.timings["queue"] < 20

    def test_the_time_in_the_queue_is_told(self, bench: Bench) -> None:
        with bench.held():
            ticket = bench.submit()
            time.sleep(0.1)
        assert ticket.future.result(20).timings["queue"] > 0.09

    def test_the_pipeline_can_be_asked(self, bench: Bench) -> None:
        assert bench.worker.ready and bench.worker.error is None
        assert bench.worker.pipeline.card.id == "klein-mini"

    def test_a_full_picture_is_estimated_from_the_warm_up(self, bench: Bench) -> None:
        assert 0 < bench.worker.estimate_s < 60


class TestSurvival:
    def test_an_error_goes_to_its_request_alone(self, bench: Bench) -> None:
        bad = bench.submit(ImageRequest("x" * 501, 128, 128, seed=1))
        broken = bench.submit(ImageRequest("a cat", 128, 128, seed=1, references=(Image.new("L", (64, 64)),)))
        good = bench.submit()
        assert isinstance(bad.future.exception(20), PromptTooLong)
        assert broken.future.exception(20) is not None
        assert good.future.result(20).image.size == (128, 128)

    @pytest.mark.parametrize(
        "error", [RuntimeError("out of memory"), MemoryError(), KeyboardInterrupt(), SystemExit(1)]
    )
    def test_no_exception_ends_the_thread(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(bench.pipeline, "generate", fail)
            assert bench.submit().future.exception(20) is error
        assert bench.submit().future.result(20).image.size == (128, 128)


class TestStopping:
    def test_a_cancelled_picture_is_given_up_at_the_next_step(self, bench: Bench) -> None:
        with bench.held() as ticket:
            ticket.future.cancel()
        assert bench.submit().future.result(20)

    def test_a_late_picture_is_given_up_at_the_next_step(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        with bench.held() as ticket, monkeypatch.context() as patch:
            late = SimpleNamespace(monotonic=lambda: ticket.deadline)
            patch.setattr("openklein.engine.scheduler.time", late)
            bench.pipeline.release.set()
            wait_until(ticket.future.done)
        assert isinstance(ticket.future.exception(20), DeadlineExceeded)
        assert list(ticket.timings) == ["queue", "text", "denoise"]
        assert bench.submit().future.result(20)

    def test_close_lets_the_running_picture_finish(self, bench: Bench) -> None:
        with bench.held() as running:
            waiting = bench.submit()
            threading.Timer(0.05, bench.pipeline.release.set).start()
            bench.worker.close(timeout_s=20)
        assert running.future.result(0).image.size == (128, 128)
        assert isinstance(waiting.future.exception(0), ShuttingDown)
        assert not bench.worker.ready
        with pytest.raises(ShuttingDown):
            bench.submit()

    def test_close_fails_a_picture_that_takes_too_long(self, bench: Bench) -> None:
        with bench.held() as running:
            started = time.monotonic()
            bench.worker.close(timeout_s=0.05)
            assert time.monotonic() - started < 5
            assert isinstance(running.future.exception(0), ShuttingDown)

    def test_close_before_the_start(self) -> None:
        worker = Worker(tiny.tiny_pipeline, Scheduler())
        worker.close(timeout_s=0)
        assert not worker.ready


class TestLoading:
    @pytest.mark.parametrize("error", [WeightsMissing("no weights"), SystemExit(1)])
    def test_a_failed_load_is_kept(self, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        def load() -> Pipeline:
            raise error

        worker = Worker(load, Scheduler())
        worker.start()
        wait_until(lambda: worker.error is not None)
        assert worker.error is error
        assert not worker.ready
        assert "could not be loaded" in caplog.text
        ticket = worker.scheduler.submit(REQUEST, deadline=time.monotonic() + 20)
        assert ticket.future.exception(20) is error
        worker.close(timeout_s=5)

    def test_a_failed_warm_up_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = tiny.tiny_pipeline()
        monkeypatch.setattr(pipeline, "_noise", lambda *_: 1 / 0)
        worker = Worker(lambda: pipeline, Scheduler())
        worker.start()
        wait_until(lambda: worker.error is not None)
        assert isinstance(worker.error, ZeroDivisionError)
        assert not worker.ready
        worker.close(timeout_s=5)

    def test_close_does_not_wait_for_a_load(self) -> None:
        release = threading.Event()

        def load() -> Pipeline:
            release.wait(20)
            return tiny.tiny_pipeline()

        worker = Worker(load, Scheduler())
        worker.start()
        ticket = worker.scheduler.submit(REQUEST, deadline=time.monotonic() + 20)
        started = time.monotonic()
        worker.close(timeout_s=10)
        assert time.monotonic() - started < 5
        assert isinstance(ticket.future.exception(0), ShuttingDown)
        release.set()
        worker._thread.join()  # an interpreter that ends while torch computes would crash
