"""The key of a request: `Authorization: Bearer …`, as OpenAI's clients send it, or `x-api-key`, as Anthropic's do."""

import hmac

from lockstep.endpoint import protocol
from lockstep.serving.answers import Headers, Refusal

AUTHORIZATION, API_KEY = b"authorization", b"x-api-key"


def check(headers: dict[bytes, bytes], key: bytes) -> None:
    """Raise Refusal unless a request carries the key, in either header, and no other one beside it.

    Args:
        key: of the server; empty where it asks for none.
    """
    if not key:
        return
    scheme, _, token = headers.get(AUTHORIZATION, b"").partition(b" ")
    given = [token.strip() if scheme.lower() == b"bearer" else b""] if AUTHORIZATION in headers else []
    given += [headers[API_KEY].strip()] if API_KEY in headers else []
    right = [hmac.compare_digest(value, key) for value in given]
    if not any(right):
        raise Refusal(401, "a key is needed: Authorization: Bearer …, or x-api-key", protocol.KEY_WANTED)
    if not all(right):
        message = "Authorization and x-api-key hold different keys: send one of them"
        raise Refusal(401, message, protocol.KEY_WANTED)


def for_vllm(headers: Headers, key: bytes) -> Headers:
    """A request's headers, with the key where vLLM, behind this, looks for it."""
    kept = [(name, value) for name, value in headers if name not in (AUTHORIZATION, API_KEY)]
    return [*kept, (AUTHORIZATION, b"Bearer " + key)] if key else kept
