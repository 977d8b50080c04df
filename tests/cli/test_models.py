import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from openklein.cli.main import main
from openklein.contract import BASE_MODEL, DEFAULT_MODEL, MINI_MODEL
from openklein.engine.manifest import MANIFEST_NAME
from tests.model_hub import COMMIT, NEXT_COMMIT, REPOSITORY, TRANSFORMER, ModelHub, klein_files, serving, use_hub

SHARD = "text_encoder/model-00002-of-00002.safetensors"
SOURCE = Path(__file__).parent.parent.parent / "src"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with serving(ModelHub()) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        monkeypatch.setenv("OPENKLEIN_DATA_DIR", str(tmp_path / "data"))
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "models" / DEFAULT_MODEL


@pytest.fixture
def pulled(hub: ModelHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["models", "pull", DEFAULT_MODEL]) == 0
    capsys.readouterr()
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["models", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def state(capsys: pytest.CaptureFixture[str], model_id: str = DEFAULT_MODEL) -> list[str]:
    """Give a model's row of the list."""
    code, out, err = run(capsys, "list")
    assert (code, err) == (0, "")
    (row,) = [line for line in out.splitlines() if line.startswith(model_id)]
    return re.split(r"  +", row)[1:]


def test_pull_tells_what_it_fetches_and_where_it_is(
    hub: ModelHub, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "pull", DEFAULT_MODEL)
    assert (code, out) == (0, f"{DEFAULT_MODEL} is installed in {folder}.\n")
    assert err == f"{REPOSITORY} at commit {COMMIT}: 11 files, 0.0 GB\n"
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_pull_takes_the_pinned_commit_wherever_main_has_gone(hub: ModelHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commits = {"main": NEXT_COMMIT, "first": COMMIT}
    assert re.fullmatch("[0-9a-f]{40}", COMMIT)
    assert run(capsys, "pull", DEFAULT_MODEL)[0] == 0
    assert state(capsys) == ["installed", "0.0 GB", COMMIT]


def test_pull_takes_a_revision(hub: ModelHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commits["v2"] = NEXT_COMMIT
    assert run(capsys, "pull", DEFAULT_MODEL, "--revision", "v2")[0] == 0
    assert state(capsys) == ["installed", "0.0 GB", NEXT_COMMIT]


def test_each_model_comes_from_its_own_repository(hub: ModelHub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "pull", BASE_MODEL)  # which this hub lacks
    assert code == 1
    assert re.search(r"black-forest-labs/FLUX\.2-klein-base-4B at revision a3b4f484\w{32} is not at ", err)


def test_a_failed_pull_is_one_sentence_and_exit_code_1(hub: ModelHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.statuses[TRANSFORMER] = (404, "EntryNotFound")
    code, out, err = run(capsys, "pull", DEFAULT_MODEL)
    assert (code, out) == (1, "")
    assert err.splitlines()[1:] == [
        f"openklein: {TRANSFORMER} is not at {hub.url}/{REPOSITORY} (HTTP 404); check --revision and HF_ENDPOINT."
    ]
    assert state(capsys)[0] == "incomplete"


def test_offline_an_installed_model_is_enough(
    pulled: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, _ = run(capsys, "pull", DEFAULT_MODEL)
    assert (code, "HF_HUB_OFFLINE is set, so no newer one was looked for" in out) == (0, True)
    assert run(capsys, "pull", DEFAULT_MODEL, "--revision", "v2")[0] == 1
    (pulled / SHARD).unlink()
    code, out, err = run(capsys, "pull", DEFAULT_MODEL)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "cannot be fetched while HF_HUB_OFFLINE is set" in err


def test_the_list_names_each_state(pulled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert state(capsys) == ["installed", "0.0 GB", COMMIT]
    assert state(capsys, MINI_MODEL) == ["in the package", "-", "-"]
    (pulled / SHARD).unlink()
    assert state(capsys)[0] == "incomplete"
    (pulled / MANIFEST_NAME).write_text("{bad")
    assert state(capsys) == ["bad record", "-", "-"]
    (pulled / MANIFEST_NAME).unlink()
    assert state(capsys) == ["put by hand", "-", "-"]
    main(["models", "rm", DEFAULT_MODEL])
    capsys.readouterr()
    assert state(capsys) == ["-", "-", "-"]


def test_verify_finds_a_flipped_bit_without_the_hub(
    pulled: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, out, _ = run(capsys, "verify", DEFAULT_MODEL)
    assert (code, out) == (0, f"{DEFAULT_MODEL}: 11 files are those of {REPOSITORY} at commit {COMMIT}.\n")
    path = pulled / SHARD
    body = bytearray(path.read_bytes())
    body[2500] ^= 1
    path.write_bytes(body)
    (pulled / "vae" / "config.json").unlink()
    code, out, err = run(capsys, "verify", DEFAULT_MODEL)
    assert (code, out) == (1, "")
    assert err == (
        f"openklein: {pulled} lacks or has other bytes in {SHARD}, vae/config.json; "
        f"`openklein models pull {DEFAULT_MODEL}` fetches that anew.\n"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert run(capsys, "pull", DEFAULT_MODEL)[0] == run(capsys, "verify", DEFAULT_MODEL)[0] == 0


def test_verify_has_nothing_to_compare_files_put_by_hand_with(pulled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pulled / MANIFEST_NAME).unlink()
    code, _, err = run(capsys, "verify", DEFAULT_MODEL)
    assert (code, f"{pulled} holds no download to verify" in err) == (1, True)


def test_rm_removes_the_folder_and_nothing_else(pulled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pulled.parent / "mine").mkdir()
    assert run(capsys, "rm", DEFAULT_MODEL) == (0, f"{pulled} is removed.\n", "")
    assert [path.name for path in pulled.parent.iterdir()] == ["mine"]
    code, out, err = run(capsys, "rm", DEFAULT_MODEL)
    assert (code, out) == (1, "")
    assert err == f"openklein: {DEFAULT_MODEL} is not there to remove: {pulled} does not exist.\n"


def test_path_is_told_before_the_model_is_there(
    hub: ModelHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "path", DEFAULT_MODEL) == (0, f"{folder}\n", "")
    assert not folder.exists()
    assert (Path(run(capsys, "path", MINI_MODEL)[1].strip()) / "tokenizer.json").is_file()


@pytest.mark.parametrize("action", ["pull", "verify", "rm"])
def test_klein_mini_is_not_ours_to_move(hub: ModelHub, capsys: pytest.CaptureFixture[str], action: str) -> None:
    code, out, err = run(capsys, action, MINI_MODEL)
    assert (code, out) == (2, "")
    assert err == "openklein: klein-mini is part of the package: it is not pulled, verified or removed.\n"


def test_the_variables_of_the_hub_are_honoured_by_a_real_process(tmp_path: Path) -> None:
    code = "import sys; from openklein.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "models", "pull", DEFAULT_MODEL, "--data-dir", str(tmp_path)]
    with serving(ModelHub(needs_token="hf_mine")) as hub:
        env = {
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_mine",
            "HOME": "/nowhere",
        }
        online = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        offline = subprocess.run(
            [*command, "--revision", "main"],
            capture_output=True, text=True, check=False, env={**env, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    assert (online.returncode, len(online.stderr.splitlines())) == (0, 1)
    assert {asked.token for asked in hub.asked} == {"Bearer hf_mine"}
    assert (tmp_path / "models" / DEFAULT_MODEL / TRANSFORMER).read_bytes() == klein_files()[TRANSFORMER]
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (1, True)
