"""Do what each process does beside its requests."""

import asyncio
import logging
from datetime import UTC, datetime
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from openklein.api.dependencies import Service
from openklein.storage.files import purge

logger = logging.getLogger(__name__)

PURGE_EVERY_S = 10.0


async def purge_regularly(service: Service) -> None:
    """Delete what is kept no longer, until cancelled; a database that is away is tried again."""
    while True:
        await asyncio.sleep(PURGE_EVERY_S)
        try:
            delete = partial(purge, service.database, datetime.now(UTC), service.settings.results_kept_bytes)
            await service.ledger.run(delete)
        except SQLAlchemyError:
            logger.exception("what is kept no longer could not be deleted")
