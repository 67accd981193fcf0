"""Every way in which a chat request fails, as one line for people and a code for programs."""

from typing import Any, Literal

from lockstep.endpoint import protocol
from lockstep.errors import UserError
from lockstep.settings import commands
from lockstep.text.unicode import printable

BUSY = (408, 409, 429, 500, 502, 503, 504)  # statuses that the same request may not meet again
PATIENCE = 60.0  # seconds: a server that asks to wait longer is not waited for

Scope = Literal["request", "moment", "silence", "always"]
Code = Literal[
    "no_server", "silent", "broke_off", "incomplete", "given_up", "loading", "being_checked", "not_ready",
    "flooded", "key_wanted",    "unknown_model", "not_openai", "no_log_probs", "not_sendable", "refused",
]  # fmt: skip


class NoAnswer(UserError):
    """A request that has no answer.

    Args:
        scope: `request`: the server refuses this one · `moment`: it may answer later · `silence`: it
            may be hung · `always`: it would fail every request.
        pause: seconds that the server asks to wait.

    Attributes:
        shown: whether a part of the answer was shown.
    """

    def __init__(self, message: str, scope: Scope, code: Code, pause: float | None = None) -> None:
        super().__init__(message, code=code)
        self.scope, self.pause, self.shown = scope, pause, False


def of_connection(error: Any, url: str, timeout: float) -> NoAnswer:
    """What the SDK's `APIConnectionError` means."""
    import httpx2
    import openai

    if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout):
        return NoAnswer(f"no server answers at {url}: start one with `{commands.make('serve')}`", "moment", "no_server")
    if isinstance(error, openai.APITimeoutError):
        return of_silence(timeout)
    message = "the answer broke off: the server or the connection failed before its end"
    return NoAnswer(message, "moment", "broke_off")


def of_silence(timeout: float) -> NoAnswer:
    """What it means that nothing came for so many seconds."""
    message = f"the server was silent for {timeout:g} s: is it hung? A larger --timeout waits longer"
    return NoAnswer(message, "silence", "silent")


def of_status(error: Any) -> NoAnswer:
    """What the SDK's `APIStatusError`, an HTTP status other than 200, means."""
    status, body = error.status_code, error.body
    reason = body.get("message") if isinstance(body, dict) else body
    reason = " ".join(str(reason or error.message).split())[:500]
    try:
        pause = max(0.0, float(error.response.headers.get("retry-after")))
    except (TypeError, ValueError):  # there is none, or it is a date
        pause = None
    if status == 503 and protocol.reason_of(body) == protocol.BEING_CHECKED:
        message = f"the server is still being checked and opens when it has passed: {reason}"
        return NoAnswer(message, "moment", "being_checked", pause)
    if status == 503 and protocol.reason_of(body) == protocol.LOADING:
        return NoAnswer(f"the server is still starting: {reason}", "moment", "loading", pause)
    if pause and pause > PATIENCE:
        reason += f" (it asks to wait {pause:.0f} s)"
    if 300 <= status < 400:
        elsewhere = printable(error.response.headers.get("location", "another address"))
        message = f"the server sends us on to {elsewhere}: questions are not taken there; give the address itself"
        return NoAnswer(message, "always", "refused")
    scope: Scope = "moment" if status in BUSY else "request"
    if status == 429:
        return NoAnswer(f"the server is flooded (429): {reason}", scope, "flooded", pause)
    if status == 503:
        return NoAnswer(f"the server is not ready (503): {reason}", scope, "not_ready", pause)
    return NoAnswer(f"the server refused ({status}): {reason}", scope, "refused", pause)
