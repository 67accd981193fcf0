"""What answers at the endpoint while vLLM loads: 503, with what is going on, so that nobody waits without a word."""

import threading
from collections.abc import Callable, Sequence
from socket import socket

from lockstep.endpoint import protocol
from lockstep.serving import anthropic_forms, routes
from lockstep.serving.answers import Receive, Refusal, Scope, Send, drain_body, refuse
from lockstep.serving.cross_origin import CrossOrigin

MOST_BYTES = 2**22  # of a body, which is read so that the answer is not lost
LAST_SECONDS = 3.0  # that answers in progress have once vLLM takes over


class LoadingServer:
    """A server in a thread of this process.

    Args:
        listener: the socket, which is closed here at the end, and not in vLLM's process.
        allowed_origins: whose pages may read the answers.
        state: what is going on, in some words.
    """

    def __init__(self, listener: socket, allowed_origins: Sequence[str], state: Callable[[], str]) -> None:
        import uvicorn

        from lockstep.serving.bounded_http import BoundedProtocol

        self.state, self.cross_origin = state, CrossOrigin(allowed_origins)
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._answer, http=BoundedProtocol, interface="asgi3", ws="none", lifespan="off", loop="asyncio",
                log_config=None, log_level="critical", access_log=False, server_header=False,
            )
        )  # fmt: skip
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Accept nothing more; a connection that waits to be accepted is left to vLLM."""
        self._server.should_exit = True
        self._thread.join(LAST_SECONDS)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        send = self.cross_origin.wrap(headers, send)
        if await self.cross_origin.answer_preflight(scope, headers, send):
            return
        await drain_body(headers, receive, MOST_BYTES)
        refusal = Refusal(503, f"the server is loading its model: {self.state()}", protocol.LOADING)
        await refuse(refusal, receive, send, anthropic_forms.are_read(routes.canonical(scope["path"]), headers))
