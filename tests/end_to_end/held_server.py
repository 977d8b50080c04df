"""Run `openklein serve` with a model that says "held" in its first picture and waits there for SIGUSR1."""

import signal
import sys
import threading
from datetime import timedelta
from typing import cast

from openklein.api import jobs
from openklein.cli import serve
from openklein.cli.main import main
from openklein.engine.pipeline import Pipeline
from tests import tiny
from tests.api.sites import GatedPipeline


def tell(is_inside: threading.Event) -> None:
    is_inside.wait()
    print("held", flush=True)


if __name__ == "__main__":
    jobs.LEASE = timedelta(seconds=2)  # so that nobody waits long for what a killed one held
    held = GatedPipeline(tiny.tiny_pipeline())
    held.gate.clear()
    signal.signal(signal.SIGUSR1, lambda *_: held.gate.set())
    threading.Thread(target=tell, args=(held.is_inside,), daemon=True).start()
    serve.load_pipeline = lambda *_, **__: cast("Pipeline", held)  # type: ignore[attr-defined]
    sys.exit(main(["serve", *sys.argv[1:]]))
