"""Settle requests: the one place that learns how each admitted request ended."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from openklein.contract import Workflow
from openklein.errors import OpenKleinError

logger = logging.getLogger(__name__)

SUCCEEDED = "succeeded"


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that passed every cheap check; exactly one settlement follows it."""

    request_id: str
    key_id: str
    model: str  # the one that answers
    workflow: Workflow
    width: int
    height: int
    references: int


async def settle(admission: Admission, outcome: str, timings: Mapping[str, float]) -> None:
    """Note how a request ended: with a picture, whose stages took `timings` seconds, or without."""
    logger.debug("request %s is settled: %s", admission.request_id, outcome)


def outcome_of(error: BaseException) -> str:
    """Name the outcome of a request that failed: the error's stable code, or `error` for a fault of ours."""
    return error.code if isinstance(error, OpenKleinError) else OpenKleinError.code
