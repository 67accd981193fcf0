"""What Anthropic's clients read, where it differs from OpenAI's: errors, and lists of models.

https://docs.claude.com/en/api/errors and /en/api/models-list describe them.
"""

import datetime
from typing import Any

VERSION = b"anthropic-version"  # the header that each of these clients sends
KINDS = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "request_too_large", 415: "invalid_request_error",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip


def are_read(route: str, headers: dict[bytes, bytes]) -> bool:
    """Whether a request comes from a client of Anthropic's.

    Args:
        route: as `routes.canonical` returns it.
    """
    return VERSION in headers or f"{route}/".startswith("/v1/messages/")


def error(status: int, message: str, reason: str | None = None) -> dict[str, Any]:
    """An error.

    Args:
        reason: in a word for programs, see `protocol.reason_of`.
    """
    kind = KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message} | ({"reason": reason} if reason else {})}


def model(card: dict[str, Any]) -> dict[str, Any]:
    """A model, from its entry in vLLM's list."""
    created = datetime.datetime.fromtimestamp(card.get("created") or 0, datetime.UTC)
    return {
        "type": "model", "id": card["id"], "display_name": card["id"], "lifecycle": "active",
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "max_input_tokens": card.get("max_model_len"),
        "max_tokens": card.get("max_model_len"),
    }  # fmt: skip


def models(cards: list[dict[str, Any]]) -> dict[str, Any]:
    """The list of all, which is one page."""
    data = [model(card) for card in cards]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"data": data, "has_more": False, "first_id": ends[0], "last_id": ends[1]}
