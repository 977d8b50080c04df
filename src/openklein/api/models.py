"""Decide which model answers a request."""

from typing import TYPE_CHECKING

from openklein.contract import DEFAULT_MODEL, MINI_MODEL
from openklein.engine.worker import Worker
from openklein.errors import ServiceError, UnknownModel

if TYPE_CHECKING:
    from openklein.engine.pipeline import Pipeline


def check_ready(worker: Worker) -> "Pipeline":
    """Return the loaded pipeline; raises ServiceError while there is none."""
    if worker.ready:
        return worker.pipeline
    if worker.error is not None:
        raise ServiceError("The model could not be loaded; the server's log says why.")
    raise ServiceError("The server is starting or stopping; try again shortly.")


def answers_for(loaded: str, *, strict: bool) -> tuple[str, ...]:
    """Name the model ids that a loaded model answers for: its own, and the default's where it stands in."""
    if loaded == MINI_MODEL and not strict:
        return MINI_MODEL, DEFAULT_MODEL
    return (loaded,)


def check_model(asked: str, loaded: str, *, strict: bool) -> None:
    """Raise UnknownModel, naming the fix, where the loaded model does not answer for the one asked for."""
    if asked not in answers_for(loaded, strict=strict):
        raise UnknownModel(
            f"{asked} is not installed on this server; ask for {loaded}, or have its operator install {asked}."
        )
