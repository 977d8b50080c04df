"""Define every error this project raises on purpose, by whose fault it is.

    OpenKleinError
    ├── CallerError              the caller can mend it; the message is shown to them
    │   ├── InvalidRequest       a field of the request is wrong
    │   │   ├── InvalidImage     a reference is not an image we accept
    │   │   ├── PromptTooLong    more prompt tokens than the model reads
    │   │   ├── UnknownModel     no such model here
    │   │   └── ReferenceUnavailable  a reference URL is refused or cannot be fetched
    │   ├── Unauthorized         no key, or not one of ours
    │   ├── Forbidden            the key may not do this
    │   ├── NotFound             nothing has this id
    │   ├── Gone                 it was there, and is no longer kept
    │   ├── Conflict             another request is at it
    │   ├── LimitExceeded        the key has used what it may
    │   └── BodyTooLarge         more bytes than the server reads
    ├── ServiceError             the server cannot do it now
    │   ├── QueueFull
    │   ├── ShuttingDown
    │   ├── DeadlineExceeded     the time allowed for the request is over
    │   └── Cancelled            the caller left
    └── OperatorError            the installation is wrong; the message is for its operator
        ├── InvalidSetting
        ├── WeightsMissing
        ├── WeightsInvalid
        ├── NotEnoughMemory      the model does not fit
        ├── DiskFull             an image or the database cannot be written
        └── DownloadFailed       the model hub, the network or the disk kept a model from being fetched

Nothing here knows HTTP: `api/error_responses.py` maps classes to status codes.
"""


class OpenKleinError(Exception):
    """Base of all; `code` is a stable name for machines."""

    code = "error"


class CallerError(OpenKleinError):
    code = "caller_error"


class InvalidRequest(CallerError):
    code = "invalid_request"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class UnknownModel(InvalidRequest):
    code = "unknown_model"


class ReferenceUnavailable(InvalidRequest):
    code = "reference_unavailable"


class Unauthorized(CallerError):
    code = "unauthorized"


class Forbidden(CallerError):
    code = "forbidden"


class NotFound(CallerError):
    code = "not_found"


class Gone(CallerError):
    code = "gone"


class Conflict(CallerError):
    code = "conflict"


class LimitExceeded(CallerError):
    """`retry_after_s` is the number of seconds after which it may be worth to try again."""

    code = "limit_exceeded"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BodyTooLarge(CallerError):
    code = "body_too_large"


class ServiceError(OpenKleinError):
    code = "service_error"


class QueueFull(ServiceError):
    code = "queue_full"


class ShuttingDown(ServiceError):
    code = "shutting_down"


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"


class Cancelled(ServiceError):
    code = "cancelled"


class OperatorError(OpenKleinError):
    code = "operator_error"


class InvalidSetting(OperatorError):
    code = "invalid_setting"


class WeightsMissing(OperatorError):
    code = "weights_missing"


class WeightsInvalid(OperatorError):
    code = "weights_invalid"


class NotEnoughMemory(OperatorError):
    code = "not_enough_memory"


class DiskFull(OperatorError):
    code = "disk_full"


class DownloadFailed(OperatorError):
    code = "download_failed"
