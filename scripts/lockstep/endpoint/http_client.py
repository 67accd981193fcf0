"""The one HTTP client for an endpoint's routes: its key, no proxy on loopback, one kind of error.

Chat requests go through the `openai` package instead, see `client.openai_client`.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lockstep.endpoint import address, protocol
from lockstep.errors import UserError

if TYPE_CHECKING:
    import httpx2

TIMEOUT = 5.0  # seconds


class NoResponse(UserError):
    """No whole HTTP response came: the connection was refused or broke off, nothing came in time, or it was no HTTP."""


@dataclass(frozen=True)
class Response:
    """An HTTP status, and the body as text."""

    status: int
    text: str


@dataclass(frozen=True)
class HttpClient:
    """Sends requests to an endpoint. Several threads may share one.

    Args:
        url: of the endpoint, ending in /v1.
        secret: of the server's start, with which requests are admitted before the gate has opened; empty for others.
    """

    url: str
    secret: str = field(default="", repr=False)

    def request(self, path: str, body: dict[str, Any] | None = None, timeout: float = TIMEOUT) -> Response:
        """GET a path, such as /v1/models or /metrics, or POST a body to it.

        Args:
            timeout: seconds without a byte after which the request fails.

        Raises:
            NoResponse: see there.
            UserError: no header can carry the key in the environment; the message does not tell it.
        """
        import httpx2

        headers = {protocol.HEADER.decode(): self.secret} if self.secret else {}
        if key := protocol.key():
            headers["Authorization"] = f"Bearer {key}"
        method, content = "GET", None
        if body is not None:
            method, content = "POST", json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            response = self._client.request(
                method, self.url.removesuffix("/v1") + path, content=content, headers=headers, timeout=timeout
            )
        except httpx2.InvalidURL as error:
            raise NoResponse(f"{self.url} cannot be asked: {error}") from error
        except (httpx2.HTTPError, OSError) as error:
            raise NoResponse(f"{path}: no answer ({str(error) or type(error).__name__})") from error
        return Response(response.status_code, response.content.decode("utf-8", errors="replace"))

    @cached_property
    def _client(self) -> "httpx2.Client":
        import httpx2

        encrypted = self.url.startswith("https:")  # reading the certificates takes 50 ms
        # A connection that is kept may be closed by the server just when the next request is sent.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        # Loopback is reached directly, whatever proxy the environment names.
        try:
            return httpx2.Client(
                trust_env=not address.is_local(self.url),
                verify=encrypted,
                limits=limits,
                follow_redirects=False,  # secret, key and questions must not travel on to another server
            )
        except (ValueError, ImportError) as error:  # such as a SOCKS proxy in ALL_PROXY
            raise NoResponse(f"{self.url} cannot be asked: {error}") from error
