from pathlib import Path

import pytest
from huggingface_hub import constants

from openklein.contract import DEFAULT_MODEL
from openklein.engine.hub import download
from openklein.engine.weights import installed
from openklein.errors import DownloadFailed
from tests.model_hub import (
    COMMIT,
    CONFIG,
    REPOSITORY,
    TRANSFORMER,
    ModelHub,
    fail_to_pull,
    files_in,
    list_klein,
    parts_in,
    pull,
    use_hub,
)


class TestWrongContent:
    @pytest.mark.parametrize("path", [TRANSFORMER, CONFIG])
    @pytest.mark.parametrize("damage", [lambda body: b"?" + body[1:], lambda body: body[:-1], lambda body: body + b" "])
    def test_it_never_gets_its_name(self, hub: ModelHub, folder: Path, path: str, damage: object) -> None:
        assert callable(damage)
        hub.sent[path] = damage(hub.files[path])
        assert f"{path} arrived with other bytes than {REPOSITORY} lists" in fail_to_pull(folder)
        assert not (folder / path).exists()
        assert parts_in(folder) == []
        hub.sent.clear()
        pull(folder)
        assert (folder / path).read_bytes() == hub.files[path]

    def test_a_file_that_is_listed_and_not_there(self, hub: ModelHub, folder: Path) -> None:
        hub.statuses[TRANSFORMER] = (404, "EntryNotFound")
        assert fail_to_pull(folder).startswith(
            f"{TRANSFORMER} is not at {hub.url}/{REPOSITORY} (HTTP 404); check --revision"
        )

    def test_a_repository_that_lacks_a_part(self, hub: ModelHub, folder: Path) -> None:
        del hub.files["vae/diffusion_pytorch_model.safetensors"]
        assert f"has no vae/*.safetensors at commit {COMMIT}, and {DEFAULT_MODEL} needs it" in fail_to_pull(folder)
        assert (hub.asked, folder.exists()) == ([], False)

    def test_a_folder_filled_by_hand_is_left_alone(self, hub: ModelHub, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
        assert f"{folder} was filled by hand" in fail_to_pull(folder)
        assert files_in(folder) == {"mine.txt": b"mine"}


class TestDisk:
    def test_too_little_space_is_told_before_anything_is_fetched(self, hub: ModelHub, folder: Path) -> None:
        hub.listed_sizes[TRANSFORMER] = 10**18
        assert f"{folder} needs 1000000000.0 GB more, and its disk has " in fail_to_pull(folder)
        assert hub.asked == []
        assert files_in(folder) == {}

    def test_what_is_there_already_needs_no_space(self, hub: ModelHub, folder: Path) -> None:
        pull(folder)
        hub.listed_sizes[TRANSFORMER] = 10**18
        with pytest.raises(DownloadFailed, match=r"needs 1000000000\.0 GB more"):
            pull(folder)
        assert installed(DEFAULT_MODEL, folder.parent)  # as before

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_disk_that_fills_up_on_the_way(self, hub: ModelHub, folder: Path) -> None:
        hub.statuses[TRANSFORMER] = (500, "")
        fail_to_pull(folder)
        (digest,) = (file.digest for file in list_klein().files if file.path == TRANSFORMER)
        part = folder / f"{TRANSFORMER}.{digest[-12:]}.part"
        part.unlink()
        part.symlink_to("/dev/full")
        hub.statuses.clear()
        assert fail_to_pull(folder).startswith(f"{TRANSFORMER} cannot be written: the disk is full; free some space")

    def test_a_place_that_cannot_be_a_folder(self, hub: ModelHub, folder: Path) -> None:
        folder.parent.write_text("a file")
        assert fail_to_pull(folder) == f"{folder} cannot be written or removed: Not a directory."


class TestAccess:
    @pytest.mark.parametrize(("token", "status"), [(None, 401), ("hf_other", 403)])
    def test_a_gated_file_names_the_page_and_the_token(
        self, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, status: int
    ) -> None:
        hub.needs_token = "hf_mine"
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        sentence = fail_to_pull(folder)
        assert f"(HTTP {status}): accept the terms at {hub.url}/{REPOSITORY}, and set HF_TOKEN" in sentence
        assert "hf_other" not in sentence

    def test_the_token_is_sent(self, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.needs_token = "hf_mine"
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        pull(folder)
        assert {asked.token for asked in hub.asked} == {"Bearer hf_mine"}

    @pytest.mark.parametrize(
        ("status", "code", "says"),
        [
            (401, "RepoNotFound", "(HTTP 401): accept the terms at "),
            (403, "", "(HTTP 403): accept the terms at "),
            (404, "RepoNotFound", "(HTTP 404); check --revision and HF_ENDPOINT"),
            (400, "", "does not answer as a model hub does; check HF_ENDPOINT"),
            (500, "", "(HTTP 500); run the same command again later"),
        ],
    )
    def test_a_listing_that_is_refused(self, hub: ModelHub, folder: Path, status: int, code: str, says: str) -> None:
        hub.statuses[""] = (status, code)
        assert says in fail_to_pull(folder)

    def test_a_revision_that_is_not_there(self, hub: ModelHub, folder: Path) -> None:
        assert fail_to_pull(folder, "v9").startswith(
            f"{REPOSITORY} at revision v9 is not at {hub.url}/{REPOSITORY} (HTTP 404)"
        )

    @pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"id": "x", "sha": "y", "siblings": [{}]}'])
    def test_a_page_that_is_no_hub(
        self, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
    ) -> None:
        monkeypatch.setattr(ModelHub, "listing", lambda self, commit: answer)
        assert fail_to_pull(folder) == f"{hub.url} does not answer as a model hub does; check HF_ENDPOINT."

    def test_a_hub_out_of_reach(self, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_hub(monkeypatch, "http://127.0.0.1:1", folder)
        assert f"cannot be fetched from http://127.0.0.1:1/{REPOSITORY} (" in fail_to_pull(folder)
        use_hub(monkeypatch, "http://[", folder)
        assert f"cannot be fetched from http://[/{REPOSITORY} (" in fail_to_pull(folder)

    def test_offline_nothing_is_asked(self, hub: ModelHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest = list_klein()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "cannot be fetched while HF_HUB_OFFLINE is set" in fail_to_pull(folder)
        with pytest.raises(DownloadFailed, match=r"model_index\.json cannot be fetched while HF_HUB_OFFLINE is set"):
            download(manifest, folder)
        assert hub.asked == []
