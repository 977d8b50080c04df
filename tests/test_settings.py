from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from pathlib import Path

import pytest

from openklein.errors import InvalidSetting
from openklein.settings import Settings, env_name, flag_name


def test_defaults_are_those_promised() -> None:
    settings = Settings.load({}, {})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.public) == ("127.0.0.1", 8000, False)
    assert settings.model == "flux2-klein-4b"
    assert settings.request_timeout_s == 120
    assert (settings.max_file_bytes, settings.max_body_bytes, settings.max_image_pixels) == (
        20 * 10**6,
        64 * 10**6,
        5e7,
    )
    assert (settings.url_timeout_s, settings.url_max_redirects) == (10, 5)
    assert settings.data_dir == Path.home() / ".local/share/openklein"


def test_flag_beats_environment_beats_default() -> None:
    env = {"OPENKLEIN_PORT": "9000", "OPENKLEIN_HOST": "::1"}
    settings = Settings.load(env, {"port": "9001"})
    assert (settings.port, settings.host, settings.queue_size) == (9001, "::1", 64)


def test_every_setting_is_read_from_its_variable_and_its_flag() -> None:
    texts = {
        "data_dir": "/srv/klein",
        "database_url": "postgresql://klein:hunter2@db/klein",
        "host": "0.0.0.0",
        "port": "81",
        "public": "yes",
        "api_key": "a key",
        "model": "klein-mini",
        "quantize": "fp8",
        "compile": "true",
        "strict_model": "1",
        "request_timeout_s": "2.5",
        "allowed_url_hosts": "Images.example, 10.0.0.1",
        "max_file_bytes": "1",
        "max_body_bytes": "2",
        "max_image_pixels": "3",
        "url_timeout_s": "4",
        "url_max_redirects": "0",
        "price_per_image": "0.25",
        "queue_size": "6",
        "job_queue_size": "8",
        "results_kept_s": "3600",
        "results_kept_bytes": "0",
        "metrics_key": "a metrics key",
        "cors_origins": "https://app.example, http://localhost:3000",
        "otlp_endpoint": "http://127.0.0.1:4318",
        "log_format": "json",
        "log_level": "debug",
    }
    assert set(texts) == {row.name for row in fields(Settings)}
    from_env = Settings.load({env_name(name): text for name, text in texts.items()}, {})
    assert from_env == Settings.load({}, texts)
    assert all(getattr(from_env, name) != getattr(Settings(), name) for name in texts)
    assert from_env.allowed_url_hosts == ("images.example", "10.0.0.1")
    assert from_env.data_dir == Path("/srv/klein")
    assert from_env.price_per_image == Decimal("0.25")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "http"),
        ("port", "65536"),
        ("port", "-1"),
        ("port", "٣"),
        ("port", "80 "),
        ("public", "maybe"),
        ("model", "flux"),
        ("request_timeout_s", "0"),
        ("request_timeout_s", "nan"),
        ("request_timeout_s", "inf"),
        ("request_timeout_s", "soon"),
        ("allowed_url_hosts", "http://images.example"),
        ("allowed_url_hosts", "*.example"),
        ("host", " "),
        ("max_file_bytes", "20MB"),
        ("queue_size", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("otlp_endpoint", "127.0.0.1:4318"),
        ("otlp_endpoint", "http://127.0.0.1:4318/v1/traces"),
        ("cors_origins", "*"),
        ("cors_origins", "app.example"),
        ("cors_origins", "https://app.example/"),
        ("cors_origins", "https://*.example"),
        ("price_per_image", "-1"),
        ("price_per_image", "1e-3"),
        ("price_per_image", "0.0000001"),
        ("price_per_image", "$1"),
        ("data_dir", "a\nb"),
    ],
)
def test_wrong_values_are_refused_with_their_source_and_value(name: str, text: str) -> None:
    with pytest.raises(InvalidSetting) as from_env:
        Settings.load({env_name(name): text}, {})
    with pytest.raises(InvalidSetting) as from_flag:
        Settings.load({}, {name: text})
    assert str(from_env.value).startswith(f"{env_name(name)} cannot be {text!r}: ")
    assert str(from_flag.value).startswith(f"{flag_name(name)} cannot be {text!r}: ")
    assert "allowed" in str(from_env.value)


def test_a_variable_set_to_nothing_is_not_set_but_an_empty_flag_is_wrong() -> None:
    assert Settings.load({"OPENKLEIN_PORT": "", "OPENKLEIN_API_KEY": ""}, {}) == Settings()
    with pytest.raises(InvalidSetting):
        Settings.load({}, {"port": ""})


def test_the_key_is_never_shown() -> None:
    assert "hunter2" not in repr(Settings(api_key="hunter2"))
    with pytest.raises(InvalidSetting) as refused:
        Settings.load({"OPENKLEIN_API_KEY": "hunter2\n"}, {})
    assert "hunter2" not in str(refused.value)


def test_a_database_is_postgresql_or_a_file_and_its_password_is_never_shown() -> None:
    assert "hunter2" not in repr(Settings(database_url="postgresql://klein:hunter2@db/klein"))
    for url in ("mysql://klein:hunter2@db/klein", "sqlite://hunter2", "postgresql://hunter2\n"):
        with pytest.raises(InvalidSetting, match="--database-url cannot be this value: ") as refused:
            Settings.load({}, {"database_url": url})
        assert "hunter2" not in str(refused.value)


def test_settings_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("LocalHost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("klein.example", False),
    ],
)
def test_loopback_addresses_are_told_from_others(host: str, is_loopback: bool) -> None:
    assert Settings(host=host).is_loopback is is_loopback


def test_files_lie_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.models_dir == tmp_path / "models"
