"""Stage 06: a chat page in the browser. It loads no model: it asks the server.

Reads   the endpoint of make serve (or --base-url), and with --compare-url a second one
Writes  nothing; the page saves a conversation where the browser saves files
Run     make chat
        python scripts/06_chat_ui.py --config configs/demo.yaml
        python scripts/06_chat_ui.py --config configs/demo.yaml --compare-url http://127.0.0.1:8001/v1

In mode lora the server offers the base beside the adapter: choose it under "Compare with". LOCKSTEP_API_KEY
goes from this program to the endpoint and never to a browser. A --ui.host other than loopback needs a
login, whose password is LOCKSTEP_UI_PASSWORD in the environment.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from lockstep.artifacts import lineage
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.serving import middleware
from lockstep.settings import cli
from lockstep.settings.tree import Settings

PASSWORD = "LOCKSTEP_UI_PASSWORD"
SHORTEST_PASSWORD = 8  # characters
PORTS = 20  # to try from ui.port on
# The page works without a network, and nothing that a model writes can make a browser fetch from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'self'; form-action 'self'"
)

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class Sealed:
    """ASGI middleware that sends every answer with a policy by which browsers fetch from this server only.

    Args:
        own_names: answer only requests for localhost or a loopback address. This keeps out pages of the web whose
            name was made to resolve to this machine (DNS rebinding).
        prefix: the path under which a proxy shows the page, such as /chat; empty where it is at /. Requests may come
            with it, as from a proxy that passes paths on as they are, or without it.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], own_names: bool, prefix: str = "") -> None:
        self.app, self.own_names, self.prefix = app, own_names, prefix

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Send) -> None:
        host = dict(scope.get("headers", ())).get(b"host", b"")
        if scope["type"] == "http" and self.own_names and not middleware.HERE.fullmatch(host):
            from starlette.responses import PlainTextResponse

            reason = f"without {PASSWORD} this page answers at http://localhost or a loopback address only"
            return await PlainTextResponse(reason, 403)(scope, receive, send)
        if scope["type"] == "http" and self.prefix:
            if scope["path"] == self.prefix:  # what the page fetches is relative to the slash
                from starlette.responses import RedirectResponse

                return await RedirectResponse(self.prefix + "/")(scope, receive, send)
            if scope["path"].startswith(self.prefix + "/"):
                scope["path"] = scope["path"].removeprefix(self.prefix)
                scope["raw_path"] = scope["raw_path"].removeprefix(self.prefix.encode())

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self.app(scope, receive, sealed)


def login(settings: Settings) -> tuple[str, str] | None:
    """Name and password, where a password is needed or set.

    Raises:
        UserError: others can reach the page, and there is no password.
    """
    host, password = settings.ui.host, os.environ.get(PASSWORD, "")
    loopback = address.is_loopback(host, "--ui.host")
    if len(password) < SHORTEST_PASSWORD and (password or not loopback):
        raise UserError(
            f"--ui.host {host}: the page needs a password of {SHORTEST_PASSWORD} characters or more: set {PASSWORD} in "
            f"the environment, such as to the output of `openssl rand -hex 12`, or use 127.0.0.1 without one"
        )
    return (settings.ui.user, password) if password else None


def bound(host: str, port: int) -> socket.socket:
    """A listening socket at the first free port from `port` on.

    Raises:
        UserError: none of the next PORTS ports is free, or the port needs root.
    """
    for number in range(port, min(port + PORTS, 65536)):
        candidate = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((host, number))
            candidate.listen(128)
            return candidate
        except PermissionError as error:
            raise UserError(f"port {number} needs root: choose one above 1023 with --ui.port") from error
        except OSError:
            candidate.close()
    raise UserError(f"no free port at {host} from {port} on: choose another --ui.port, or another --ui.host")


def application(page: Any, auth: tuple[str, str] | None, root_path: str) -> Sealed:
    """The page as an ASGI application.

    Args:
        root_path: see `ui.root_path`.
    """
    import gradio
    from fastapi import FastAPI

    from lockstep.chat import layout

    page.queue(max_size=256)
    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="",
        auth=auth,
        root_path=root_path,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
        show_error=False,
        theme=layout.theme(),
        css_paths=[layout.CSS],
        head=f"<script>{layout.SCRIPT.read_text(encoding='utf-8')}</script>",
    )
    return Sealed(app, own_names=auth is None, prefix=urlsplit(root_path).path)


def serve(app: Sealed, at: socket.socket) -> None:
    """Show the page until Ctrl-C."""
    import uvicorn

    # Browsers keep connections open, and Ctrl-C need not wait for them.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)  # or it reports each of them
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[at])


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "serve", "sampling", "ui")
    parser.add_argument("--base-url", help="the endpoint, ending in /v1 [from serve.host and serve.port]")
    parser.add_argument("--compare-url", help="a second endpoint, such as the untouched base's, shown beside it")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    auth = login(settings)
    for line in [] if chosen.base_url else lineage.notes(settings):
        cli.say(f"note: {line}", to_stderr=True)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported
    given = [chosen.base_url or address.url(settings), chosen.compare_url]
    urls = [address.checked_url(url) for url in given if url]
    at = bound(settings.ui.host, settings.ui.port)

    from lockstep.chat.page import Page
    from lockstep.client.health import Watch
    from lockstep.client.openai_client import Endpoint
    from lockstep.prompts import built_in_system

    own = None if chosen.base_url else address.serve_dir(settings)
    endpoints = [Endpoint(url, retries=0) for url in urls]  # the reader sees the state, and asks again
    watch = Watch([(url, own if place == 0 else None) for place, url in enumerate(urls)], settings.ui.check_seconds)
    watch.start()
    # of another server's model nobody knows what is built in
    built_in = None if chosen.base_url else built_in_system.of_run(settings.run_dir)
    page = Page(settings, endpoints, watch, address.model_name(settings), built_in).build()
    host, port = at.getsockname()[:2]
    if port != settings.ui.port:
        cli.say(f"port {settings.ui.port} is taken")
    path = urlsplit(settings.ui.root_path).path
    cli.say(f"chat page at http://{f'[{host}]' if ':' in host else host}:{port}{path} (Ctrl-C ends it)")
    if auth:
        cli.say(f"log in as {auth[0]} with the password in {PASSWORD}")
    serve(application(page, auth, settings.ui.root_path), at)


if __name__ == "__main__":
    cli.run(main)
