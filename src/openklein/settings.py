"""Describe every setting once: its name, default, reading and help.

The fields of `Settings` are the table. It feeds the environment names (`OPENKLEIN_<NAME>`), the flags of
`openklein serve`, their --help and docs/settings.md. Defaults are written as an operator would write them and are
read by the same functions.
"""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from openklein.contract import DEFAULT_MODEL, SERVABLE_MODEL_IDS
from openklein.errors import InvalidSetting

ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
Quantization = Literal["none", "int8", "fp8"]
LOG_LEVELS = ("debug", "info", "warning", "error")


def to_text(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("text is allowed that can be printed and has no blanks at its ends")
    return text


def to_optional_text(text: str) -> str | None:
    return to_text(text) if text else None


def to_path(text: str) -> Path:
    return Path(os.path.expanduser(to_text(text))).absolute()


def to_flag(text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("true or false is allowed")
    return words[text.lower()]


def to_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    if any(set(name) & set("/@?#* \t") for name in names):
        raise ValueError("host names separated by commas are allowed, without scheme, port, path or wildcard")
    return names


def to_origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip() for origin in text.split(",") if origin.strip())
    if not all(ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("origins separated by commas are allowed, as browsers send them: https://app.example:8443")
    return origins


def to_optional_origin(text: str) -> str | None:
    if text and not ORIGIN.fullmatch(text):
        raise ValueError("scheme, host and port alone are allowed: http://127.0.0.1:4318")
    return text or None


def to_count(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise ValueError(f"a whole number from {low} to {high} is allowed")
        return int(text)

    return read


def to_seconds(text: str) -> float:
    message = "a number of seconds above 0 and up to 86400 is allowed"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(message) from None
    if math.isnan(seconds) or not 0 < seconds <= 86_400:
        raise ValueError(message)
    return seconds


def to_dollars(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise ValueError("dollars from 0 to 999999 with up to 6 decimals are allowed")
    return Decimal(text)


def to_database_url(text: str) -> str | None:
    if text and not text.startswith(("postgresql://", "postgres://", "sqlite:///")):
        raise ValueError("postgresql://user:password@host/name is allowed")
    return to_optional_text(text)


def to_choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)} is allowed")
        return text

    return read


def setting(default: str, read: Callable[[str], Any], help: str, *, secret: bool = False) -> Any:
    return field(
        default_factory=lambda: read(default),
        repr=not secret,
        metadata={"default": default, "read": read, "help": help, "secret": secret},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can set; immutable once read."""

    data_dir: Path = setting(
        "~/.local/share/openklein", to_path, "folder of the database and of downloaded weights; made with mode 0700"
    )
    database_url: str | None = setting(
        "",
        to_database_url,
        "a PostgreSQL database, postgresql://...; without it a file in the data folder",
        secret=True,
    )
    host: str = setting("127.0.0.1", to_text, "address to listen on; one that is not loopback needs --public")
    port: int = setting("8000", to_count(0, 65_535), "port to listen on; 0 picks a free one")
    public: bool = setting("false", to_flag, "allow listening on an address that others can reach")
    api_key: str | None = setting(
        "", to_optional_text, "a fixed API key, any text, beside those in the database", secret=True
    )
    model: str = setting(
        DEFAULT_MODEL, to_choice(*SERVABLE_MODEL_IDS), "model to serve: " + ", ".join(SERVABLE_MODEL_IDS)
    )
    quantize: Quantization = setting(
        "none",
        to_choice("none", "int8", "fp8"),
        "compute the transformer's large layers in 8 bits: int8, on CPUs, compiled; fp8, on NVIDIA GPUs; or none",
    )
    compile: bool = setting("false", to_flag, "compile the transformer for this device: a slower start, faster images")
    strict_model: bool = setting("false", to_flag, "refuse requests for a model that is not installed: no stand-in")
    request_timeout_s: float = setting("120", to_seconds, "seconds a request may take, its time in the queue included")
    allowed_url_hosts: tuple[str, ...] = setting(
        "", to_names, "host names, separated by commas, whose private addresses image_uris may lead to"
    )
    max_file_bytes: int = setting("20000000", to_count(1, 2**31), "largest reference image, in bytes")
    max_body_bytes: int = setting("64000000", to_count(1, 2**31), "largest request body, in bytes")
    max_image_pixels: int = setting("50000000", to_count(1, 2**31), "largest reference image, in pixels when decoded")
    url_timeout_s: float = setting("10", to_seconds, "seconds that fetching one image URL may take")
    url_max_redirects: int = setting("5", to_count(0, 20), "redirects that one image URL may take")
    price_per_image: Decimal = setting("0.003", to_dollars, "dollars that an image costs its key")
    queue_size: int = setting("64", to_count(1, 100_000), "requests that may wait for the model")
    job_queue_size: int = setting("256", to_count(1, 100_000), "jobs that may wait, on all servers together")
    results_kept_s: float = setting(
        "86400", to_seconds, "seconds that a job that has ended, or the answer to an Idempotency-Key, is kept"
    )
    results_kept_bytes: int = setting(
        "2000000000", to_count(0, 2**50), "bytes that kept pictures may take in the database; the oldest go first"
    )
    metrics_key: str | None = setting(
        "", to_optional_text, "the one key for /metrics; open on loopback and closed elsewhere without it", secret=True
    )
    cors_origins: tuple[str, ...] = setting(
        "", to_origins, "origins, separated by commas, whose web pages may call the API: https://app.example"
    )
    otlp_endpoint: str | None = setting(
        "", to_optional_origin, "collector for OpenTelemetry traces, as http://127.0.0.1:4318; needs openklein[otel]"
    )
    log_format: str = setting("text", to_choice("text", "json"), "how to log: text, or json, one object a line")
    log_level: str = setting("info", to_choice(*LOG_LEVELS), "least severe messages to log: " + ", ".join(LOG_LEVELS))

    @classmethod
    def load(cls, env: Mapping[str, str], flags: Mapping[str, str]) -> "Settings":
        """Read settings from flags (by field name), then from the environment, then from the defaults.

        A variable that is set to nothing counts as not set. Raises InvalidSetting for a value that cannot be read.
        """
        values: dict[str, Any] = {}
        for row in fields(cls):
            if row.name in flags:
                values[row.name] = read_setting(row, flag_name(row.name), flags[row.name])
            elif text := env.get(env_name(row.name), ""):
                values[row.name] = read_setting(row, env_name(row.name), text)
        return cls(**values)

    @property
    def is_private(self) -> bool:
        """Tell whether the server is for its own machine alone."""
        return self.is_loopback and not self.public

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine can reach the address that the server listens on."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def env_name(name: str) -> str:
    return f"OPENKLEIN_{name.upper()}"


def flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_setting(row: Field[Any], source: str, text: str) -> Any:
    try:
        return row.metadata["read"](text)
    except ValueError as error:
        shown = "this value" if row.metadata["secret"] else repr(text)
        raise InvalidSetting(f"{source} cannot be {shown}: {error}.") from None
