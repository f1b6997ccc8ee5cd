"""Every error the product raises on purpose, as one tree.

    FaasError                      500  InternalError
    ├── InvalidInput               400  InvalidInput          the caller wrote something wrong
    │   ├── SpecError              400  InvalidSpec           a key of faas.toml, with its place
    │   └── ImageUnusable          400  ImageUnusable         an image that can never run here
    ├── Unauthenticated            401  Unauthenticated       no or unknown credentials
    ├── Forbidden                  403  Forbidden             known, but not allowed
    ├── NotFound                   404  NotFound
    │   └── Gone                   410  GoneException         there is none any more, or never was
    ├── RequestTimeout             408  RequestTimeout        the client sent nothing for too long
    ├── Conflict                   409  Conflict
    ├── PayloadTooLarge            413  PayloadTooLarge
    ├── ExpectationFailed          417  ExpectationFailed     the client expects what we do not do
    ├── Throttled                  429  Throttled             with retry_after and a reason
    ├── NotOffered                 501  NotOffered            named, so that nobody waits for it
    ├── ShuttingDown               503  ShuttingDown
    ├── Unavailable                503  Unavailable           a part that we need does not answer
    │   ├── StorageFull            507  StorageFull           the disk has no room for it
    │   └── Paused                 503  Unavailable           not served for a while, with retry_after and a reason
    │       ├── CircuitOpen        503  CircuitOpen           too many calls of the function failed
    │       └── Maintenance        503  Maintenance           somebody said so
    └── FunctionError              502  …                     the function's fault, never ours
        ├── InitFailed             502  Runtime.InitError
        ├── InstanceExited         502  Runtime.ExitError
        │   └── OutOfMemory        502  Runtime.OutOfMemory
        ├── ResponseTooLarge       502  Function.ResponseSizeTooLarge
        ├── BadFunctionResponse    502  Function.InvalidResponse
        └── TimedOut               504  Sandbox.Timedout

`code` and `status` belong to the class; one middleware (`faas.web`) turns them into responses.
Foreign errors are translated into one of these where they enter, once.
"""

from __future__ import annotations


class FaasError(Exception):
    """Something went wrong on our side."""

    code = "InternalError"
    status = 500

    def __init__(self, message: str | None = None, *, hint: str = "") -> None:
        self.message = message or (self.__doc__ or self.code).splitlines()[0]
        self.hint = hint
        super().__init__(self.message)


class InvalidInput(FaasError):
    """The request is not valid."""

    code = "InvalidInput"
    status = 400


class SpecError(InvalidInput):
    """A function's specification is not valid.

    `key` is the dotted path (`scale.max`), for a place in a file.
    """

    code = "InvalidSpec"

    def __init__(self, message: str, *, key: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.key = key


class ImageUnusable(InvalidInput):
    """The image cannot run here: gone, wrong architecture, no entry point, unsafe layers."""

    code = "ImageUnusable"


class Unauthenticated(FaasError):
    """Credentials are missing or unknown."""

    code = "Unauthenticated"
    status = 401
    challenge = 'Bearer realm="faas"'  # what WWW-Authenticate says; another instance may say other words


class Forbidden(FaasError):
    """These credentials do not allow this."""

    code = "Forbidden"
    status = 403


class NotFound(FaasError):
    """There is no such thing."""

    code = "NotFound"
    status = 404


class Gone(NotFound):
    """There is no such connection, or none any more."""

    code = "GoneException"
    status = 410


class RequestTimeout(FaasError):
    """The client sent nothing for too long."""

    code = "RequestTimeout"
    status = 408


class Conflict(FaasError):
    """The state of the thing does not allow this now."""

    code = "Conflict"
    status = 409


class PayloadTooLarge(FaasError):
    """The body is over the limit."""

    code = "PayloadTooLarge"
    status = 413


class ExpectationFailed(FaasError):
    """What the request expects cannot be met."""

    code = "ExpectationFailed"
    status = 417


class Throttled(FaasError):
    """No capacity for this request now.

    `reason` is one of Lambda's (`ConcurrentInvocationLimitExceeded` …); `retry_after` is whole seconds.
    """

    code = "Throttled"
    status = 429

    def __init__(
        self,
        message: str | None = None,
        *,
        reason: str = "ConcurrentInvocationLimitExceeded",
        retry_after: int = 1,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.retry_after = retry_after


class NotOffered(FaasError):
    """This operation is not built yet."""

    code = "NotOffered"
    status = 501


class ShuttingDown(FaasError):
    """The server is shutting down; try again shortly."""

    code = "ShuttingDown"
    status = 503


class Unavailable(FaasError):
    """A part that is needed for this does not answer."""

    code = "Unavailable"
    status = 503


class StorageFull(Unavailable):
    """The disk is full."""

    code = "StorageFull"
    status = 507


class Paused(Unavailable):
    """What was asked for is not served for a while. `retry_after` is whole seconds."""

    reason = "Paused"

    def __init__(self, message: str | None = None, *, retry_after: int = 1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class CircuitOpen(Paused):
    """Too many of the last calls failed; it is tried again in a while."""

    code = reason = "CircuitOpen"


class Maintenance(Paused):
    """This is being worked on; try again later."""

    code = reason = "Maintenance"


class FunctionError(FaasError):
    """The function failed.

    `error_type` is the error's own name (`ValueError`, `Runtime.ExitError` …), sent as `X-Error-Type`.
    `kind` is the label of `faas_errors_total`: handled | unhandled | timeout | oom | init.
    """

    code = "FunctionError"
    status = 502
    kind = "unhandled"

    def __init__(self, message: str | None = None, *, error_type: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.error_type = error_type or self.code


class InitFailed(FunctionError):
    """The instance did not become ready. `log_tail` holds the last lines it wrote."""

    code = "Runtime.InitError"
    kind = "init"

    def __init__(
        self,
        message: str | None = None,
        *,
        error_type: str | None = None,
        hint: str = "",
        log_tail: str = "",
    ) -> None:
        super().__init__(message, error_type=error_type, hint=hint)
        self.log_tail = log_tail


class InstanceExited(FunctionError):
    """The instance ended during the invocation."""

    code = "Runtime.ExitError"


class OutOfMemory(InstanceExited):
    """The instance was killed because it used more memory than its limit."""

    code = "Runtime.OutOfMemory"
    kind = "oom"


class ResponseTooLarge(FunctionError):
    """The function's response is over the limit."""

    code = "Function.ResponseSizeTooLarge"


class BadFunctionResponse(FunctionError):
    """The function answered something that is not a response."""

    code = "Function.InvalidResponse"


class TimedOut(FunctionError):
    """The function ran over its time limit and was killed."""

    code = "Sandbox.Timedout"
    status = 504
    kind = "timeout"
