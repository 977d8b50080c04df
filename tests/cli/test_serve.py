import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from openklein.cli.serve import announce, base_url, check_keys, listen, serve, warn_if_slow
from openklein.cli.store import open_database
from openklein.errors import InvalidSetting
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import create_key, find_key, list_keys, revoke_key


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    with closing(open_database(settings)) as database:
        yield database


def test_the_first_key_is_printed_once_with_a_line_to_try_it(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    announce(settings, database, "http://127.0.0.1:8123")
    printed = capsys.readouterr().out
    secret = re.findall(r"klein_[\w-]{43}", printed)[0]
    key = find_key(database, secret)
    assert key == list_keys(database)[0]
    assert key.scopes == ("admin",)
    assert f"curl http://127.0.0.1:8123/v1/generate -H 'Authorization: Bearer {secret}' -F prompt='" in printed
    assert secret not in caplog.text

    announce(settings, database, "http://127.0.0.1:8123")
    assert capsys.readouterr().out == ""
    assert len(list_keys(database)) == 1


def test_no_key_is_made_beside_a_fixed_one(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    announce(Settings(data_dir=settings.data_dir, api_key="fixed"), database, "http://127.0.0.1:8123")
    assert (capsys.readouterr().out, list_keys(database)) == ("", [])


def test_revoked_keys_are_not_replaced_behind_the_operators_back(
    settings: Settings, database: Database, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    revoke_key(database, create_key(database, "old").id)
    create_key(database, "older", expires_at=datetime.now(UTC))
    check_keys(settings, database)
    announce(settings, database, "http://127.0.0.1:8123")
    assert capsys.readouterr().out == ""
    assert len(list_keys(database)) == 2
    assert "all API keys are revoked or expired" in caplog.text


def test_a_public_server_needs_a_good_key(settings: Settings, database: Database) -> None:
    public = Settings(data_dir=settings.data_dir, host="0.0.0.0", public=True)
    check_keys(public, database)  # the first start makes one
    revoke_key(database, create_key(database, "old").id)
    with pytest.raises(InvalidSetting, match="all API keys are revoked or expired; openklein keys create makes one"):
        check_keys(public, database)
    check_keys(replace(public, api_key="fixed"), database)
    create_key(database, "new")
    check_keys(public, database)


def test_a_device_too_slow_for_the_time_allowed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_slow(119.9, 120.0)
    assert caplog.text == ""
    warn_if_slow(341.23, 120.0)
    assert "1024x1024 is expected to take 341.2 s here" in caplog.text
    assert "may take 120 s" in caplog.text
    assert "--request-timeout-s" in caplog.text


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
        ("klein.example", "http://klein.example:80"),
    ],
)
def test_the_address_shown_reaches_the_server(host: str, url: str) -> None:
    assert base_url(host, 80) == url


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "klein.example"])
def test_a_public_address_needs_a_word(settings: Settings, host: str) -> None:
    with pytest.raises(InvalidSetting, match=f"--host {host} lets other machines reach .* add --public"):
        serve(Settings(host=host, data_dir=settings.data_dir))
    assert not settings.data_dir.exists()


def test_a_taken_port_is_named(settings: Settings) -> None:
    with listen(settings) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSetting, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            listen(Settings(port=port))


def test_listening_on_ipv6_where_there_is_any(settings: Settings) -> None:
    try:
        with listen(Settings(host="::1", port=0)) as listener:
            assert listener.family == socket.AF_INET6
    except InvalidSetting as error:
        assert str(error).startswith("cannot listen on ::1 port 0: ")


def test_a_disk_without_room_for_the_database_is_named(tmp_path: Path) -> None:
    code = "import sys; from openklein.cli.main import main; sys.exit(main())"
    command = f'ulimit -f 1; exec {sys.executable} -c "{code}" serve --data-dir {tmp_path}'
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    sentence = rf"openklein: the database in {tmp_path} cannot be written: .*disk.*; free some space there\.$"
    assert re.search(sentence, run.stderr)
