"""Keep the record of a downloaded model beside its files, and hold them to it. Touches no network."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from openklein.errors import WeightsInvalid

MANIFEST_NAME = "openklein.json"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file as the model hub lists it."""

    path: str  # within the model's folder, with slashes
    size: int  # bytes
    digest: str  # "sha256:..." of large files, "git:..." (the blob's SHA-1) of small ones

    def __post_init__(self) -> None:
        if self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError(f"{self.path} leads out of the folder")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model's folder holds, or will hold once `is_complete`."""

    repository: str
    commit: str
    files: tuple[ModelFile, ...]
    is_complete: bool  # every file was fetched and had its digest

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def read_manifest(folder: Path) -> Manifest | None:
    """Read a folder's record; None where there is none, as where files were put by hand. Raises WeightsInvalid."""
    path = folder / MANIFEST_NAME
    try:
        fields = json.loads(path.read_bytes())
        return Manifest(**{**fields, "files": tuple(ModelFile(**file) for file in fields["files"])})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsInvalid(
            f"{path} is not the record of a download ({error}); remove the model with `openklein models rm`, "
            "then pull it again."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a folder's record in one step, which a loss of power does not undo."""
    part = folder / f"{MANIFEST_NAME}.part"
    with part.open("w") as file:
        json.dump(asdict(manifest), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST_NAME)


def has_its_size(file: ModelFile, folder: Path) -> bool:
    path = folder / file.path
    return path.is_file() and path.stat().st_size == file.size


def has_digest(path: Path, digest: str) -> bool:
    """Read a file to its end and compare; git hashes a header with the size before the bytes."""
    kind, _, expected = digest.partition(":")
    header = f"blob {path.stat().st_size}\0".encode()
    with path.open("rb") as stream:
        made = hashlib.file_digest(stream, "sha256" if kind == "sha256" else partial(hashlib.sha1, header))
    return made.hexdigest() == expected


def differing(files: Iterable[ModelFile], folder: Path) -> list[ModelFile]:
    """List the files that a folder lacks or holds with other bytes; reads every byte."""
    return [file for file in files if not (has_its_size(file, folder) and has_digest(folder / file.path, file.digest))]
