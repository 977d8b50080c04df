"""Download a model from the model hub: resumable, at one commit, and nothing counts before its digest is right.

Endpoint, token and offline mode are those of huggingface_hub: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from httpx2 import HTTPError, InvalidURL
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there, not declared

from openklein.engine.catalog import HubSource, ModelCard
from openklein.engine.manifest import (
    Manifest,
    ModelFile,
    differing,
    has_digest,
    read_manifest,
    write_manifest,
)
from openklein.errors import DownloadFailed

LIBRARY = "openklein"
TIMEOUT_S = 30.0


def list_files(card: ModelCard, source: HubSource) -> Manifest:
    """Ask the hub for the commit that `source.revision` stands for, and its files; raises DownloadFailed."""
    api = HfApi(library_name=LIBRARY)
    with one_sentence(f"{source.repository} at revision {source.revision}", source.repository):
        try:
            info = api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S)
            files = tuple(
                model_file(sibling)
                for sibling in info.siblings or ()
                if any(matches(sibling.rfilename, pattern) for pattern in source.patterns)
            )
        except (ValueError, TypeError, KeyError) as error:
            raise DownloadFailed(
                f"{constants.ENDPOINT} does not answer as a model hub does; check HF_ENDPOINT."
            ) from error
    for part in card.files.values():
        if not any(matches(file.path, pattern) for file in files for pattern in part):
            raise DownloadFailed(
                f"{source.repository} has no {part[0]} at commit {info.sha}, and {card.id} needs it; "
                "choose another --revision."
            )
    return Manifest(source.repository, str(info.sha), files, is_complete=False)


def model_file(sibling: RepoSibling) -> ModelFile:
    digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git:{sibling.blob_id}"
    if sibling.size is None:
        raise ValueError(f"{sibling.rfilename} has no size")
    return ModelFile(sibling.rfilename, sibling.size, digest)


def matches(path: str, pattern: str) -> bool:
    """Match folder by folder: a star stands for no slash."""
    names, wanted = path.split("/"), pattern.split("/")
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))


def download(manifest: Manifest, folder: Path) -> None:
    """Make `folder` hold what `manifest` lists; what it holds already is checked and kept.

    Until the last file is right the folder's own record says that it is incomplete. Raises DownloadFailed.
    """
    with one_sentence(str(folder), manifest.repository):
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            earlier = read_manifest(folder)
            if earlier is None and any(folder.iterdir()):
                raise DownloadFailed(
                    f"{folder} was filled by hand and is left as it is; move it away or remove it with "
                    "`openklein models rm` first."
                )
            missing = differing(manifest.files, folder)
            check_space(missing, folder)
            write_manifest(folder, manifest)
            for file in missing:
                fetch(manifest, file, folder)
            clear(folder, earlier, manifest)
            write_manifest(folder, replace(manifest, is_complete=True))


def check_space(missing: list[ModelFile], folder: Path) -> None:
    needed = sum(file.size - size_of(part_path(file, folder)) for file in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadFailed(
            f"{folder} needs {needed / 1e9:.1f} GB more, and its disk has {free / 1e9:.1f} GB free; "
            "free some, or choose another --data-dir."
        )


def part_path(file: ModelFile, folder: Path) -> Path:
    """Name the unfinished file by its digest, so that it is only ever continued with the same content."""
    path = folder / file.path
    return path.with_name(f"{path.name}.{file.digest[-12:]}.part")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def fetch(manifest: Manifest, file: ModelFile, folder: Path) -> None:
    """Fetch what is missing of one file, and give it its name once its digest is right."""
    part = part_path(file, folder)
    part.parent.mkdir(parents=True, exist_ok=True)
    headers = {**build_hf_headers(library_name=LIBRARY), "Accept-Encoding": "identity"}
    url = hf_hub_url(manifest.repository, file.path, revision=manifest.commit)
    with one_sentence(file.path, manifest.repository), part.open("ab") as stream:
        if (done := stream.tell()) < file.size:
            http_get(url, stream, resume_size=done, headers=headers, displayed_filename=file.path)
        stream.flush()
        os.fsync(stream.fileno())
    if not has_digest(part, file.digest):
        part.unlink()
        raise DownloadFailed(
            f"{file.path} arrived with other bytes than {manifest.repository} lists, and was thrown away; "
            "run the same command again, and if that does not help, check HF_ENDPOINT."
        )
    part.replace(folder / file.path)


def clear(folder: Path, earlier: Manifest | None, manifest: Manifest) -> None:
    """Remove unfinished files and those of an earlier commit that this one lacks: the loader would read them too."""
    kept = {file.path for file in manifest.files}
    for file in earlier.files if earlier else ():
        if file.path not in kept:
            (folder / file.path).unlink(missing_ok=True)
    for part in folder.rglob("*.part"):
        part.unlink()


def remove(folder: Path) -> bool:
    """Remove a model's folder, or the link to one; False where there is none. Raises DownloadFailed."""
    # under another name first: a removal that is cut short must not leave half a model that counts
    doomed = folder.with_name(f".{folder.name}.removed")
    with one_sentence(str(folder)):
        if folder.is_symlink():
            folder.unlink()
            return True
        if folder.is_dir():
            with alone_in(folder):
                shutil.rmtree(doomed, ignore_errors=True)
                folder.rename(doomed)
        if not doomed.exists():
            return False
        shutil.rmtree(doomed)
        return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise DownloadFailed(f"another openklein is working in {folder}; wait until it is done.") from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def one_sentence(what: str, repository: str = "") -> Iterator[None]:
    """Turn what the hub, the network or the disk did to `what` into DownloadFailed, with the way out."""
    try:
        yield
    except (HTTPError, InvalidURL, OSError) as error:
        raise DownloadFailed(f"{what} {explain(error, f'{constants.ENDPOINT}/{repository}')}") from error


def explain(error: HTTPError | InvalidURL | OSError, page: str) -> str:
    match error:
        case OfflineModeIsEnabled():
            return "cannot be fetched while HF_HUB_OFFLINE is set; unset it, or put the files in place by hand."
        case HfHubHTTPError():
            return explain_status(error.response.status_code, page)
        case HTTPError() | InvalidURL():
            reason = str(error) or type(error).__name__
            return f"cannot be fetched from {page} ({reason}); run the same command again to go on from there."
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "cannot be written: the disk is full; free some space and run the same command again."
        case _:
            return f"cannot be written or removed: {error.strerror or error}."


def explain_status(status: int, page: str) -> str:
    if status in (401, 403):
        return (
            f"is not open to this account (HTTP {status}): accept the terms at {page}, "
            "and set HF_TOKEN to a token of the account that did."
        )
    if status == 404:
        return f"is not at {page} (HTTP 404); check --revision and HF_ENDPOINT."
    return f"cannot be fetched from {page} (HTTP {status}); run the same command again later to go on from there."
