import pytest

from openklein import errors
from openklein.api.error_responses import error_response
from tests.api.sites import Site, expect_error

STATUSES = {
    errors.CallerError: 422,
    errors.InvalidRequest: 422,
    errors.InvalidImage: 422,
    errors.PromptTooLong: 422,
    errors.UnknownModel: 422,
    errors.ReferenceUnavailable: 422,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.BodyTooLarge: 413,
    errors.ServiceError: 503,
    errors.QueueFull: 503,
    errors.ShuttingDown: 503,
    errors.Cancelled: 503,
    errors.DeadlineExceeded: 504,
}
RAISED = {errors.OpenKleinError, *[kind for kind in vars(errors).values() if isinstance(kind, type)]}
FAULTS = RAISED - {*STATUSES, errors.LimitExceeded}


@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
def test_each_error_has_its_status(kind: type[errors.OpenKleinError], status: int) -> None:
    response = error_response(kind("a sentence"))
    assert (response.status_code, response.body) == (status, b'{"detail":"a sentence"}')
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_a_limit_says_when_to_come_again() -> None:
    response = error_response(errors.LimitExceeded("a sentence", 7))
    assert (response.status_code, response.body) == (429, b'{"detail":"a sentence"}')
    assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize("kind", FAULTS)
def test_errors_meant_for_the_operator_are_not_answered(kind: type[errors.OpenKleinError]) -> None:
    with pytest.raises(kind):
        error_response(kind("secret"))


@pytest.mark.parametrize(
    "path", ["/nowhere", "/v1/nowhere", "/v1", "/v1/generate/", "/docs", "/redoc", "/%2e%2e/etc/passwd"]
)
def test_paths_that_lead_nowhere(path: str, site: Site) -> None:
    for method in ("GET", "POST"):
        expect_error(site.client.request(method, path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/generate", "POST"),
        ("PUT", "/v1/generate", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/health/live", "GET"),
        ("OPTIONS", "/v1/generate", "POST"),
    ],
)
def test_methods_that_a_path_does_not_take(method: str, path: str, allowed: str, site: Site) -> None:
    response = site.client.request(method, path)
    expect_error(response, 405)
    assert response.headers["allow"] == allowed
