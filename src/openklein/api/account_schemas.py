"""Describe keys, limits and usage as they go over the wire: amounts of dollars are strings, times are UTC."""

from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from openklein.storage.keys import DEFAULT_SCOPES, Key, Scope
from openklein.storage.limits import Meter
from openklein.storage.tables import format_amount
from openklein.storage.usage import Bucket, GroupBy, UsageSum

MAX_COUNT = 10**9


def printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("control characters are not allowed")
    return value


def read_time(value: Any) -> datetime:
    """Read an ISO 8601 date, which begins at midnight UTC, or a time with its offset from UTC."""
    try:
        time = datetime.fromisoformat(value)
        if len(value) == len("2026-11-22"):
            return time.replace(tzinfo=UTC)
    except (TypeError, ValueError):
        raise ValueError("a date or time like 2026-11-22 or 2026-11-22T08:00:00Z is allowed") from None
    if time.tzinfo is None:
        raise ValueError("the time needs its offset from UTC, like the Z of 2026-11-22T08:00:00Z")
    return time.astimezone(UTC)


def read_scopes(value: list[Scope]) -> list[Scope]:
    if not value or len(set(value)) < len(value):
        raise ValueError("one scope or more, each once, is allowed")
    return value


Name = Annotated[str, Field(max_length=100), AfterValidator(printable)]
Scopes = Annotated[list[Scope], AfterValidator(read_scopes)]
Time = Annotated[AwareDatetime, BeforeValidator(read_time)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Dollars = Annotated[
    Decimal,
    Field(strict=False, gt=0, le=MAX_COUNT, decimal_places=6),
    PlainSerializer(format_amount, return_type=str, when_used="json"),
]


class LimitFields(BaseModel):
    """What a key may do; null is no limit. Days and months are those of UTC."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    requests_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    images_per_day: Count | None = None
    images_per_month: Count | None = None
    dollars_per_day: Dollars | None = None
    dollars_per_month: Dollars | None = None


class KeyFields(LimitFields):
    """What can be said of a key; in a change, what is not given stays, and null takes a limit or the expiry away."""

    name: Name = ""
    owner: Name = ""
    scopes: Scopes = Field(default=list(DEFAULT_SCOPES))
    expires_at: Time | None = None


class KeyBody(LimitFields):
    """A key, without its secret."""

    object: Literal["key"] = "key"
    id: str
    name: str
    owner: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @classmethod
    def of(cls, key: Key) -> Self:
        fields = asdict(key)
        return cls(**fields.pop("limits"), **{**fields, "scopes": list(key.scopes)})


class KeysBody(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyBody]


class NewKeyBody(KeyBody):
    """A key at the only moment its secret is shown."""

    secret: str


class LimitBody(BaseModel):
    """One limit of a key; `frees_at` is when use ends to count against it, null where nobody can know."""

    limit: int | str
    left: int | str
    frees_at: datetime | None


class AccountBody(BaseModel):
    """The key that asks, and what is left of each of its limits."""

    object: Literal["account"] = "account"
    key: KeyBody
    limits: dict[str, LimitBody]

    @classmethod
    def of(cls, key: Key, meters: list[Meter]) -> Self:
        limits = {
            meter.name: LimitBody(limit=_amount(meter.limit), left=_amount(meter.left), frees_at=meter.frees_at)
            for meter in meters
        }
        return cls(key=KeyBody.of(key), limits=limits)


def _amount(amount: int | Decimal) -> int | str:
    return format_amount(amount) if isinstance(amount, Decimal) else amount


class UsageQuery(BaseModel):
    """Which usage to add up: that settled from `start` to before `end`; 30 days up to now where neither is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: Time | None = None
    end: Time | None = None
    bucket: Bucket = "day"
    group_by: GroupBy | None = None


class SumBody(BaseModel):
    """Requests added up; numbers that are not whole are strings, and exact."""

    requests: int
    succeeded: int
    images: int
    megapixels: str
    seconds: str
    price: str

    @classmethod
    def of(cls, *sums: UsageSum, **facts: Any) -> Self:
        return cls(
            requests=sum(part.requests for part in sums),
            succeeded=sum(part.succeeded for part in sums),
            images=sum(part.images for part in sums),
            megapixels=format_amount(Decimal(sum(part.pixels for part in sums)).scaleb(-6)),
            seconds=format_amount(Decimal(sum(part.milliseconds for part in sums)).scaleb(-3)),
            price=format_amount(sum((part.price for part in sums), Decimal(0))),
            **facts,
        )


class BucketBody(SumBody):
    """One hour, day or month of UTC, and one key, model or workflow where they are grouped."""

    start: datetime
    group: str | None


class UsageBody(BaseModel):
    """Usage by buckets in order of time, those without requests left out, and its total."""

    object: Literal["usage"] = "usage"
    start: datetime
    end: datetime
    bucket: Bucket
    group_by: GroupBy | None
    data: list[BucketBody]
    total: SumBody
