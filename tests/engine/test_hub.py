import fcntl
import os
from pathlib import Path

import pytest

from openklein.contract import DEFAULT_MODEL
from openklein.engine.hub import download, matches, remove
from openklein.engine.manifest import MANIFEST_NAME, read_manifest
from openklein.engine.weights import installed, load_pipeline
from openklein.errors import DownloadFailed, WeightsMissing
from tests.model_hub import (
    COMMIT,
    CONFIG,
    NEXT_COMMIT,
    REPOSITORY,
    TRANSFORMER,
    Asked,
    ModelHub,
    content,
    fail_to_pull,
    files_in,
    list_klein,
    parts_in,
    pull,
)

UNWANTED = {
    "README.md",
    "flux-2-klein-4b.safetensors",
    "text_encoder/pytorch_model.bin",
    "transformer/code.py",
    "vae/extra/more.safetensors",
}


class TestSuccess:
    def test_every_file_that_is_needed_is_fetched_and_no_other(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        wanted = {path: body for path, body in hub.files.items() if path not in UNWANTED}
        found = files_in(folder)
        del found[MANIFEST_NAME]
        assert found == wanted
        assert sorted(hub.paths) == sorted(wanted)
        assert installed(DEFAULT_MODEL, folder.parent)

    def test_what_a_branch_stood_for_is_fetched_and_recorded(self, hub: ModelHub, folder: Path) -> None:
        manifest = list_klein()
        hub.commits["main"] = NEXT_COMMIT  # moves on between the listing and the download
        download(manifest, folder)
        assert {asked.commit for asked in hub.asked} == {COMMIT}
        record = read_manifest(folder)
        assert record is not None
        assert (record.repository, record.commit, record.is_complete) == (REPOSITORY, COMMIT, True)

    @pytest.mark.parametrize("revision", ["experiment/1", NEXT_COMMIT])
    def test_another_revision(self, hub: ModelHub, folder: Path, revision: str) -> None:
        hub.commits["experiment/1"] = NEXT_COMMIT
        assert pull(folder, revision).commit == NEXT_COMMIT

    def test_a_second_pull_fetches_nothing(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        hub.asked.clear()
        pull(folder)
        assert hub.asked == []
        assert installed(DEFAULT_MODEL, folder.parent)

    def test_a_damaged_file_alone_is_fetched_anew(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        hub.asked.clear()
        path = folder / TRANSFORMER
        path.write_bytes(b"\x00" + path.read_bytes()[1:])
        pull(folder)
        assert hub.paths == [TRANSFORMER]
        assert path.read_bytes() == hub.files[TRANSFORMER]

    def test_a_newer_commit_replaces_what_differs_and_removes_what_it_lacks(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        hub.asked.clear()
        hub.commits["main"] = NEXT_COMMIT
        hub.files[TRANSFORMER] = content(9, 30_000)
        for shard in (1, 2):
            del hub.files[f"text_encoder/model-0000{shard}-of-00002.safetensors"]
        hub.files["text_encoder/model.safetensors"] = content(8, 8000)
        (folder / "notes.txt").write_text("mine")
        pull(folder)
        assert sorted(hub.paths) == ["text_encoder/model.safetensors", TRANSFORMER]
        assert [path.name for path in (folder / "text_encoder").glob("*.safetensors")] == ["model.safetensors"]
        assert (folder / "notes.txt").read_text() == "mine"


class TestInterruption:
    def test_a_lost_connection_is_taken_up_where_it_broke(self, hub: ModelHub, folder: Path) -> None:
        hub.cut_after[TRANSFORMER] = 12_000
        pull(folder)
        assert [asked.first_byte for asked in hub.asked if asked.path == TRANSFORMER] == [0, 12_000]
        assert (folder / TRANSFORMER).read_bytes() == hub.files[TRANSFORMER]
        assert parts_in(folder) == []

    def test_a_second_try_asks_only_for_the_rest(self, hub: ModelHub, folder: Path) -> None:
        hub.cut_after[TRANSFORMER] = 12_000
        hub.cut_statuses[TRANSFORMER] = (503, "")
        assert f"{TRANSFORMER} cannot be fetched from {hub.url}/{REPOSITORY} (HTTP 503)" in fail_to_pull(folder)
        assert [part.read_bytes() for part in parts_in(folder)] == [hub.files[TRANSFORMER][:12_000]]
        assert not (folder / TRANSFORMER).exists()
        before = set(hub.paths)
        hub.statuses.clear()
        hub.asked.clear()
        pull(folder)
        assert hub.asked[0] == Asked(TRANSFORMER, 12_000, COMMIT, None)
        assert not before & set(hub.paths[1:])
        assert (folder / TRANSFORMER).read_bytes() == hub.files[TRANSFORMER]
        assert parts_in(folder) == []
        assert installed(DEFAULT_MODEL, folder.parent)

    def test_what_was_fetched_of_other_content_is_not_continued(self, hub: ModelHub, folder: Path) -> None:
        hub.cut_after[TRANSFORMER] = 12_000
        hub.cut_statuses[TRANSFORMER] = (503, "")
        fail_to_pull(folder)
        hub.statuses.clear()
        hub.asked.clear()
        hub.commits["main"] = NEXT_COMMIT
        hub.files[TRANSFORMER] = content(9, 40_000)
        pull(folder)
        assert hub.asked[0] == Asked(TRANSFORMER, 0, NEXT_COMMIT, None)
        assert parts_in(folder) == []

    def test_an_update_that_is_interrupted_does_not_count(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        hub.commits["main"] = NEXT_COMMIT
        hub.files[CONFIG] = b"{ }"
        hub.files[TRANSFORMER] = content(9, 40_000)  # of the same size as before
        hub.statuses[TRANSFORMER] = (500, "")
        assert TRANSFORMER in fail_to_pull(folder)
        with pytest.raises(WeightsMissing, match=f"{folder} holds part of a download; `openklein models pull"):
            load_pipeline(DEFAULT_MODEL, folder.parent)
        hub.statuses.clear()
        pull(folder)
        assert installed(DEFAULT_MODEL, folder.parent)

    def test_two_at_once_do_not_mix(self, hub: ModelHub, folder: Path) -> None:
        folder.mkdir(parents=True)
        other = os.open(folder, os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_SH)
        assert f"another openklein is working in {folder}" in fail_to_pull(folder)
        with pytest.raises(DownloadFailed, match="another openklein is working"):
            remove(folder)
        os.close(other)
        pull(folder)


def test_a_removal_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    folder = tmp_path / DEFAULT_MODEL
    (tmp_path / f".{DEFAULT_MODEL}.removed" / "vae").mkdir(parents=True)
    assert remove(folder)
    assert list(tmp_path.iterdir()) == []
    assert not remove(folder)


def test_of_a_link_the_link_is_removed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = tmp_path / DEFAULT_MODEL
    folder.symlink_to(elsewhere)
    assert remove(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


@pytest.mark.parametrize(
    ("path", "fits"),
    [("vae/a.json", True), ("a.json", False), ("vae/b/a.json", False), ("vae/a.jsonl", False), ("../a.json", False)],
)
def test_a_star_stands_for_no_slash(path: str, fits: bool) -> None:
    assert matches(path, "vae/*.json") is fits
