"""What the server's middleware and those who ask it agree on: names of variables, headers and routes, and the key."""

import os
import re

from lockstep.errors import UserError

RULES, OPEN, SECRET, KEY = "LOCKSTEP_RULES", "LOCKSTEP_OPEN", "LOCKSTEP_SECRET", "LOCKSTEP_API_KEY"
HEADER = b"x-lockstep-secret"
IN_FLIGHT = "/lockstep/in-flight"  # with the secret: how many requests have been let in and are not answered
CLOSED = "the gate has not opened"  # by these words clients know why they are not let in


def key() -> str:
    """The endpoint's key, empty where there is none. Raises UserError, which does not tell it, where no header can carry it."""
    found = os.environ.get(KEY, "").strip()
    if not re.fullmatch("[!-~]*", found):
        raise UserError(
            f"{KEY} holds what no HTTP header can carry, such as a space or a line break: "
            f"set it to the output of `openssl rand -hex 24`"
        )
    return found
