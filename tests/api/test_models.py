import pytest

from openklein.api.models import answers_for, check_model
from openklein.errors import UnknownModel


@pytest.mark.parametrize(
    ("loaded", "strict", "ids"),
    [
        ("klein-mini", False, ("klein-mini", "flux2-klein-4b")),
        ("klein-mini", True, ("klein-mini",)),
        ("flux2-klein-4b", False, ("flux2-klein-4b",)),
        ("flux2-klein-4b", True, ("flux2-klein-4b",)),
        ("flux2-klein-base-4b", False, ("flux2-klein-base-4b",)),
    ],
)
def test_only_klein_mini_stands_in(loaded: str, strict: bool, ids: tuple[str, ...]) -> None:
    assert answers_for(loaded, strict=strict) == ids
    for asked in ids:
        check_model(asked, loaded, strict=strict)


@pytest.mark.parametrize(
    ("asked", "loaded", "strict"),
    [
        ("flux2-klein-4b", "klein-mini", True),
        ("klein-mini", "flux2-klein-4b", False),
        ("flux2-klein-base-4b", "klein-mini", False),
        ("flux2-klein-base-4b", "flux2-klein-4b", False),
        ("flux2-klein-4b", "flux2-klein-base-4b", False),
    ],
)
def test_the_error_names_what_is_there(asked: str, loaded: str, strict: bool) -> None:
    with pytest.raises(UnknownModel, match=f"^{asked} is not installed on this server; ask for {loaded}, or "):
        check_model(asked, loaded, strict=strict)
