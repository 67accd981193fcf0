"""Which web pages may call the endpoint from a browser (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import MutableMapping, Sequence
from typing import Any

from lockstep.serving.answers import Headers, Scope, Send

ANY = "*"
MAX_AGE = b"600"  # seconds for which a browser need not ask again
EXPOSED = b"retry-after, x-request-id"  # beside those that any page may read


class CrossOrigin:
    """Adds what a browser needs to hand an answer, refusals and streams among them, to a page.

    Args:
        allowed: origins, such as http://localhost:5173, or * for every page.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = {origin.encode() for origin in allowed}

    def allows(self, headers: dict[bytes, bytes]) -> bool:
        """Whether a request comes from a page that is let in."""
        origin = headers.get(b"origin")
        return origin is not None and (origin in self.allowed or ANY.encode() in self.allowed)

    def wrap(self, headers: dict[bytes, bytes], send: Send) -> Send:
        """`send`, with the headers that the page needs; as it is where no page is let in.

        Args:
            headers: of the request.
        """
        if not self.allowed:
            return send
        more: Headers = [(b"vary", b"Origin")]  # or a cache would give one page the answer for another
        if self.allows(headers):
            more += [
                (b"access-control-allow-origin", headers[b"origin"]),
                (b"access-control-expose-headers", EXPOSED),
            ]

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        return sending

    async def answer_preflight(self, scope: Scope, headers: dict[bytes, bytes], send: Send) -> bool:
        """Answer a browser that asks, without a key, whether a page may send a request; False where none asks.

        Args:
            send: as `wrap` made it.
        """
        if not is_preflight(scope, headers) or not self.allows(headers):
            return False
        more: Headers = [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", headers.get(b"access-control-request-headers", b"content-type")),
            (b"access-control-max-age", MAX_AGE),
        ]
        if headers.get(b"access-control-request-private-network") == b"true":
            more.append((b"access-control-allow-private-network", b"true"))
        await send({"type": "http.response.start", "status": 204, "headers": more})
        await send({"type": "http.response.body", "body": b""})
        return True


def is_preflight(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a browser asks, for a page, what it may send."""
    return scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
