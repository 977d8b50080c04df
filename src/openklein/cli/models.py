"""Download models, and look after what is in the data folder."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from openklein.cli.store import open_data_dir
from openklein.engine.catalog import CATALOG, HubSource
from openklein.engine.manifest import Manifest, differing, read_manifest
from openklein.engine.weights import installed, model_folder
from openklein.errors import InvalidRequest, WeightsInvalid, WeightsMissing
from openklein.settings import Settings


def run(settings: Settings, arguments: argparse.Namespace) -> int:
    match arguments.action:
        case "pull":
            return pull(settings, arguments.model, arguments.revision)
        case "list":
            return show(settings)
        case "verify":
            return verify(settings, arguments.model)
        case "rm":
            return remove(settings, arguments.model)
        case _:
            print(model_folder(arguments.model, settings.models_dir))
            return 0


def pull(settings: Settings, model_id: str, revision: str | None) -> int:
    """Make the data folder hold a model at a revision; what it holds of that already is checked and kept."""
    from huggingface_hub import is_offline_mode

    from openklein.engine.hub import download, list_files

    source, folder = source_of(model_id), model_folder(model_id, settings.models_dir)
    if is_offline_mode() and revision is None and installed(model_id, settings.models_dir):
        print(f"{model_id} is installed in {folder}; HF_HUB_OFFLINE is set, so no newer one was looked for.")
        return 0
    manifest = list_files(CATALOG[model_id], replace(source, revision=revision or source.revision))
    size = f"{len(manifest.files)} files, {manifest.size / 1e9:.1f} GB"
    print(f"{manifest.repository} at commit {manifest.commit}: {size}", file=sys.stderr, flush=True)
    open_data_dir(settings)
    download(manifest, folder)
    print(f"{model_id} is installed in {folder}.")
    return 0


def show(settings: Settings) -> int:
    print(f"{'MODEL':<20}  {'STATE':<14}  {'SIZE':>8}  COMMIT")
    for model_id in CATALOG:
        try:
            manifest = read_manifest(model_folder(model_id, settings.models_dir))
            state = state_of(model_id, settings.models_dir, manifest)
        except WeightsInvalid:
            manifest, state = None, "bad record"  # which `verify` says more of
        size, commit = (f"{manifest.size / 1e9:.1f} GB", manifest.commit) if manifest else ("-", "-")
        print(f"{model_id:<20}  {state:<14}  {size:>8}  {commit}")
    return 0


def state_of(model_id: str, models_dir: Path, manifest: Manifest | None) -> str:
    folder = model_folder(model_id, models_dir)
    if CATALOG[model_id].source is None and not folder.is_relative_to(models_dir):
        return "in the package"
    if installed(model_id, models_dir):
        return "installed" if manifest else "put by hand"
    return "incomplete" if folder.exists() else "-"


def verify(settings: Settings, model_id: str) -> int:
    """Hold every byte of a download against its record, without the hub."""
    source_of(model_id)
    folder = model_folder(model_id, settings.models_dir)
    manifest = read_manifest(folder)
    if manifest is None:
        raise WeightsMissing(f"{folder} holds no download to verify; `openklein models pull {model_id}` makes one.")
    if wrong := differing(manifest.files, folder):
        names = ", ".join(file.path for file in wrong)
        raise WeightsInvalid(
            f"{folder} lacks or has other bytes in {names}; `openklein models pull {model_id}` fetches that anew."
        )
    if not manifest.is_complete:
        raise WeightsInvalid(f"{folder} is incomplete; `openklein models pull {model_id}` finishes the download.")
    print(f"{model_id}: {len(manifest.files)} files are those of {manifest.repository} at commit {manifest.commit}.")
    return 0


def remove(settings: Settings, model_id: str) -> int:
    from openklein.engine import hub

    source_of(model_id)
    folder = model_folder(model_id, settings.models_dir)
    if not hub.remove(folder):
        raise WeightsMissing(f"{model_id} is not there to remove: {folder} does not exist.")
    print(f"{folder} is removed.")
    return 0


def source_of(model_id: str) -> HubSource:
    source = CATALOG[model_id].source
    if source is None:
        raise InvalidRequest(f"{model_id} is part of the package: it is not pulled, verified or removed.")
    return source
