"""Open the data folder, and the database that the settings name."""

from sqlalchemy.exc import DBAPIError

from openklein.errors import DiskFull, InvalidSetting
from openklein.settings import Settings
from openklein.storage.database import Database, make_data_dir


def open_data_dir(settings: Settings) -> None:
    """Make the data folder where it lacks; raise InvalidSetting where it cannot be used."""
    try:
        make_data_dir(settings.data_dir)
    except OSError as error:
        raise InvalidSetting(f"the data folder {settings.data_dir} cannot be used: {error.strerror}.") from error


def open_database(settings: Settings) -> Database:
    """Make the data folder and the database where they lack; raise InvalidSetting or DiskFull where that fails."""
    open_data_dir(settings)
    try:
        return Database(settings.database_url or f"sqlite:///{settings.data_dir / 'openklein.db'}")
    except DBAPIError as error:
        place = "at --database-url" if settings.database_url else f"in {settings.data_dir}"
        reason = str(error.orig).strip().splitlines()[0]
        if "disk" in reason:
            raise DiskFull(f"the database {place} cannot be written: {reason}; free some space there.") from error
        raise InvalidSetting(f"the database {place} cannot be used: {reason}.") from error
