import re
from pathlib import Path

import pytest

from openklein import __version__
from openklein.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run a command; give its exit code, standard output and standard error."""
    try:
        code = main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    out, err = capsys.readouterr()
    return code, out, err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"openklein {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["keys"], "the following arguments are required: ACTION"),
        (["generate", "-o", "a.png"], "the following arguments are required: PROMPT"),
        (["generate", "a cat"], "the following arguments are required: -o"),
        (["generate", "a cat", "-o", "a.png", "--aspect", "round"], "invalid choice: 'round'"),
        (["generate", "a cat", "-o", "a.png", "--seed", "-1"], "'-1' is not a whole number from 0 to 2^63-1"),
        (["generate", "a cat", "-o", "a.png", "--seed", str(2**63)], "is not a whole number from 0 to 2^63-1"),
        (["generate", "a cat", "-o", "a.png", "--model", "dall-e"], "invalid choice: 'dall-e'"),
        (["edit", "photo.png", "-o", "a.png"], "the following arguments are required: INSTRUCTION"),
        (["serve", "--port"], "argument --port: expected one argument"),
        (["serve", "--port", "x"], "--port cannot be 'x': a whole number from 0 to 65535 is allowed."),
        (["keys", "list", "--data-dir", ""], "--data-dir cannot be ''"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_wrong_environment_is_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENKLEIN_QUEUE_SIZE", "many")
    code, _, err = run(capsys, "keys", "list")
    assert code == 2
    assert err == "openklein: OPENKLEIN_QUEUE_SIZE cannot be 'many': a whole number from 1 to 100000 is allowed.\n"


def test_keys_are_created_listed_changed_and_revoked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    here = ("--data-dir", str(tmp_path / "data"))
    limits = ("--images-per-day", "7", "--dollars-per-month", "0.5", "--expires-at", "2099-12-31")
    code, secret, note = run(capsys, "keys", "create", "--name", "my laptop", "--owner", "Ada", *limits, *here)
    assert code == 0
    assert re.fullmatch(r"klein_[\w-]{43}\n", secret)
    assert secret.strip() not in note
    key_id = re.findall(r"[0-9a-f]{12}", note)[0]

    def listed() -> list[str]:
        code, listing, _ = run(capsys, "keys", "list", *here)
        assert code == 0
        assert secret.strip() not in listing
        header, row = (re.split(r"  +", line) for line in listing.splitlines())
        assert header == ["ID", "CREATED", "EXPIRES", "REVOKED", "LAST USED", "SCOPES", "LIMITS", "OWNER", "NAME"]
        return [row[0], *row[2:]]

    shown = [key_id, "2099-12-31 00:00", "-", "-", "generate,read", "images_per_day=7,dollars_per_month=0.5"]
    assert listed() == [*shown, "Ada", "my laptop"]
    changes = ("--scopes", "read, admin", "--images-per-day", "none", "--expires-at", "none")
    assert run(capsys, "keys", "update", key_id, *changes, *here) == (0, f"Key {key_id} is changed.\n", "")
    assert listed() == [key_id, "-", "-", "-", "read,admin", "dollars_per_month=0.5", "Ada", "my laptop"]
    assert run(capsys, "keys", "revoke", key_id, *here) == (0, f"Key {key_id} is revoked.\n", "")
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", listed()[2])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--images-per-day", "0"),
        ("--images-per-day", "many"),
        ("--requests-per-minute", "1.5"),
        ("--dollars-per-day", "0.0000001"),
        ("--dollars-per-day", "nan"),
        ("--expires-at", "tomorrow"),
        ("--expires-at", "2099-12-31T12:00:00"),
        ("--scopes", ""),
        ("--scopes", "read,read"),
        ("--scopes", "none"),
    ],
)
def test_fields_of_a_key_that_are_wrong_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str, value: str
) -> None:
    code, out, err = run(capsys, "keys", "create", flag, value, "--data-dir", str(tmp_path / "data"))
    assert (code, out) == (2, "")
    assert err.startswith(f"openklein: {flag} cannot be {value!r}: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("action", ["revoke", "update"])
def test_a_key_that_is_not_there_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, action: str
) -> None:
    code, out, err = run(capsys, "keys", action, "0123456789ab", "--data-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert "there is no key '0123456789ab'" in err


@pytest.mark.parametrize("name", ["two\nlines", "x" * 101])
def test_a_name_that_would_spoil_the_list_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    code, out, err = run(capsys, "keys", "create", "--name", name, "--data-dir", str(tmp_path))
    assert (code, out) == (2, "")
    assert f"--name cannot be {name!r}: " in err
    assert len(err.splitlines()) == 1


def test_a_folder_or_database_that_cannot_be_used_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "openklein.db").write_bytes(b"this is no database" * 100)
    code, _, err = run(capsys, "keys", "list", "--data-dir", str(tmp_path))
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"the database in {tmp_path} cannot be used: file is not a database" in err
    code, _, err = run(capsys, "keys", "list", "--data-dir", str(tmp_path / "openklein.db"))
    assert (code, len(err.splitlines())) == (2, 1)
    assert "cannot be used: " in err
    nowhere = f"postgresql://klein:hunter2@/klein?host={tmp_path}"
    code, _, err = run(capsys, "keys", "list", "--data-dir", str(tmp_path), "--database-url", nowhere)
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith("openklein: the database at --database-url cannot be used: connection")
    assert "hunter2" not in err
