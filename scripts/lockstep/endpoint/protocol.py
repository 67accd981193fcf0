"""What the server's middleware and its clients agree on: variables, headers, routes, refusals, and the key."""

import json
import os
import re
from typing import Any

from lockstep.errors import UserError

# Variables of the server's environment: two files, this start's secret, and the key that clients need.
RULES, OPEN, SECRET, KEY = "LOCKSTEP_RULES", "LOCKSTEP_OPEN", "LOCKSTEP_SECRET", "LOCKSTEP_API_KEY"
# And two files that vLLM's process inherits: the socket, and a pipe on which it says that it accepts connections.
LISTENER, READY = "LOCKSTEP_LISTENER", "LOCKSTEP_READY"
HEADER = b"x-lockstep-secret"
IN_FLIGHT = "/lockstep/in-flight"  # with the secret: how many requests were admitted and are not answered yet
MODULES = "/lockstep/modules"  # likewise: which parts of each adapter lie in the buffers of vLLM's workers
# `error.reason` of an answer by the middleware; vLLM, behind it, answers with the same statuses for other causes.
LOADING, BEING_CHECKED, KEY_WANTED, FLOODED = "loading", "being_checked", "key_wanted", "flooded"


def reason_of(body: Any) -> str:
    """`error.reason` of an answer's body, as text or as JSON, whole or only its `error`; empty where it has none."""
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return ""
    error = body.get("error", body) if isinstance(body, dict) else None
    return str(error.get("reason") or "") if isinstance(error, dict) else ""


def key() -> str:
    """The endpoint's key, empty where there is none.

    Raises:
        UserError: no header can carry it; the message does not tell it.
    """
    value = os.environ.get(KEY, "").strip()
    if not re.fullmatch("[!-~]*", value):
        raise UserError(
            f"{KEY} holds what no HTTP header can carry, such as a space or a line break: "
            f"set it to the output of `openssl rand -hex 24`"
        )
    return value
