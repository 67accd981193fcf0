"""Admission to vLLM's server: nobody before the gate has opened, and after that only to the listed routes and fields.

vLLM listens as soon as it can, with every route that it has, and some of them ask for no key. Its flag
`--middleware lockstep.serving.middleware.Guard` makes this the outermost layer. A file says whether the endpoint is
open, so that all of the server's processes know; until then only requests with this start's secret are admitted.
"""

import asyncio
import hmac
import json
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames
from lockstep.endpoint import protocol, server_note
from lockstep.serving import anthropic_forms, credentials, request_length, routes
from lockstep.serving.answers import App, Receive, Refusal, Scope, Send, answer, body_of, drain_body, refuse
from lockstep.serving.cross_origin import CrossOrigin, is_preflight
from lockstep.serving.messages_route import COUNT, MESSAGES, CountTranslation, MessagesTranslation
from lockstep.serving.request_body import json_text
from lockstep.serving.request_fields import CHAT
from lockstep.serving.request_rules import LIMITED, Rules
from lockstep.serving.responses_route import RESPONSES, ResponsesTranslation
from lockstep.serving.thought_names import BothNames
from lockstep.serving.translation import TranslatedSend, Translation

LARGE_BYTES = 2**16  # of a body
BODY_SECONDS = 30.0  # for a body to arrive: a client that sends more slowly must not occupy a place
TRANSLATED: dict[str, Callable[[dict[str, Any]], Translation]] = {
    RESPONSES: ResponsesTranslation,
    MESSAGES: MessagesTranslation,
    COUNT: CountTranslation,
}
HERE = re.compile(rb"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)  # this machine, as clients call it


class Guard:
    """Pure ASGI, so that streams pass through untouched. Its settings come from the environment, see `protocol`."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.rules = Rules.read(Path(os.environ[protocol.RULES]))
        self.open = Path(os.environ[protocol.OPEN])
        self.secret = os.environ[protocol.SECRET].encode()
        self.key = protocol.key().encode()
        self.cross_origin = CrossOrigin(self.rules.allowed_origins)
        self.running = self.arriving = 0
        self.checking, self.checking_large = asyncio.Semaphore(1), asyncio.Semaphore(1)
        self.rules.template.control_token("")  # loads it now, and not while the first client waits
        self.rules.length.fewest_tokens("")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = dict(scope["headers"])
        if hmac.compare_digest(headers.get(protocol.HEADER, b""), self.secret):
            return await self._answer_supervisor(scope, receive, send)
        send = self.cross_origin.wrap(headers, send)
        if await self.cross_origin.answer_preflight(scope, headers, send):
            return None
        route, translation = "", None
        try:
            route = self._admit(scope, headers)
            if scope["method"] == "POST":
                receive, translation = await self._checked(route, headers, receive)
                send = TranslatedSend(translation, send) if translation else send
                self._admit(scope, headers)  # while the body came, others may have come too, or the endpoint closed
            await self._serve(route, translation.route if translation else route, scope, receive, send)
        except Refusal as refusal:
            if not route or refusal.status == 429:
                await drain_body(headers, receive, self.rules.max_body_bytes)
            to_anthropics = anthropic_forms.are_read(routes.canonical(scope["path"]), headers)
            await refuse(refusal, receive, send, to_anthropics)

    async def _answer_supervisor(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the supervisor of this start, which may ask everything."""
        if scope["path"] == protocol.IN_FLIGHT:
            return await answer(200, {"requests": self.running}, [], send)
        if scope["path"] == protocol.MODULES:
            return await answer(200, {"adapters": await _adapter_blocks(scope["app"].state)}, [], send)
        if scope["path"] not in TRANSLATED:
            return await self.app(scope, receive, send)
        # The gate asks for the ids of the prompt, which these protocols have no place for.
        value = json.loads(await body_of({}, receive, self.rules.max_body_bytes))
        chat = TRANSLATED[scope["path"]](value).chat
        self.rules.refusal(CHAT, chat)  # brings it into the form that vLLM reads
        body = json.dumps({**chat, "return_token_ids": True}).encode()
        await self.app({**scope, "path": CHAT, "raw_path": CHAT.encode()}, _whole(body, receive), send)

    async def _serve(self, route: str, inner: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that is admitted.

        Args:
            route, inner: that it was sent to, and that of vLLM's which answers it.

        Raises:
            Refusal: it names a model that there is not.
        """
        if route == "/health":  # the canary has answered; vLLM's own route would hang with its engine
            return await answer(200, {"status": "open"}, [], send)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # of which uvicorn sends the head alone
        to_anthropics = anthropic_forms.are_read(route, dict(scope["headers"]))
        scope = {**scope, "method": method, "headers": credentials.for_vllm(scope["headers"], self.key)}
        if routes.model_of(route) or (route == routes.MODELS and to_anthropics):
            return await self._show_models(route, to_anthropics, scope, receive, send)
        scope = {**scope, "path": inner, "raw_path": inner.encode()}
        if route not in LIMITED:
            return await self.app(scope, receive, send)
        self.running += 1
        try:
            await self.app(scope, receive, BothNames(send) if route == CHAT else send)
        finally:
            self.running -= 1

    async def _show_models(self, route: str, to_anthropics: bool, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what vLLM has not, by its list of models: GET /v1/models/{model}, and Anthropic's form of the list."""
        body = bytearray()

        async def keep(message: MutableMapping[str, Any]) -> None:
            body.extend(message.get("body", b""))

        await self.app({**scope, "path": routes.MODELS, "raw_path": routes.MODELS.encode()}, receive, keep)
        cards = json.loads(body).get("data", [])
        model = routes.model_of(route)
        if model is None:
            return await answer(200, anthropic_forms.models(cards), [], send)
        for card in cards:
            if card["id"] == model:
                return await answer(200, anthropic_forms.model(card) if to_anthropics else card, [], send)
        raise Refusal(404, f"the model {model!r:.80} does not exist: GET {routes.MODELS} lists those that do")

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The route of a request that is admitted as far as its head tells. Raises Refusal."""
        if not self.open.exists():
            raise Refusal(503, self._why_closed(), protocol.BEING_CHECKED)
        if self.rules.loopback and not self.key and not HERE.fullmatch(headers.get(b"host", b"localhost")):
            # a web page whose name was made to lead to this machine sends its own name (DNS rebinding)
            raise Refusal(403, "without LOCKSTEP_API_KEY this server answers as localhost only, and not by other names")
        if is_preflight(scope, headers):
            raise Refusal(403, "pages of this origin are not let in: --serve.allowed_origins lists those that are")
        route = routes.canonical(scope["path"])
        listed = self.rules.routes.get(routes.MODELS if routes.model_of(route) else route)
        if scope["method"] != listed and (scope["method"], listed) != ("HEAD", "GET"):
            raise routes.not_served(scope["method"], route, self.rules.routes)
        if route != "/health":
            credentials.check(headers, self.key)
        if route in LIMITED and self.running >= self.rules.max_requests:
            message = f"{self.running} requests run and wait already: try again later"
            raise Refusal(429, message, protocol.FLOODED)
        return route

    def _why_closed(self) -> str:
        """Why nobody is admitted, and how far the gate is."""
        message = "the gate has not opened: the server is being checked, or does not answer (make status)"
        note = server_note.read(self.open.parent)
        return f"{message}; {note.progress}" if note and note.progress else message

    async def _checked(
        self, route: str, headers: dict[bytes, bytes], receive: Receive
    ) -> tuple[Receive, Translation | None]:
        """Read and check the body.

        Returns:
            what gives it to the server, and what translates the answer where the request is of another protocol.

        Raises:
            Refusal
        """
        with self._place() as take:
            reading = body_of(headers, receive, self.rules.max_body_bytes, next_piece=take)
            try:
                body = await asyncio.wait_for(reading, BODY_SECONDS)
            except TimeoutError as error:
                raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:.0f} s") from error
            again, translation = await self._checked_text(
                route, json_text(headers, body), large=len(body) > LARGE_BYTES
            )
        return _whole(again, receive), translation

    @contextmanager
    def _place(self) -> Iterator[Callable[[], None]]:
        """Hold one of the places for bodies that arrive in pieces, from the first call of what this returns.

        As many may be in memory as requests may run. A body that comes whole, as those of short chats do, needs no
        place: clients that send slowly take them, and would keep everybody else out.

        Raises:
            Refusal: by that call, where all places are taken.
        """
        held = False

        def take() -> None:
            nonlocal held
            if not held and self.arriving >= self.rules.max_requests:
                message = f"the bodies of {self.arriving} requests are on their way already: try again later"
                raise Refusal(429, message, protocol.FLOODED)
            self.arriving += not held
            held = True

        try:
            yield take
        finally:
            self.arriving -= held

    async def _checked_text(self, route: str, text: str, large: bool) -> tuple[bytes, Translation | None]:
        """See `_rewritten`. Raises Refusal."""
        # In a thread, and one at a time of each kind: a large body, which takes up to a second, must hold up neither
        # the streams of others nor the chats that wait to be checked.
        async with self.checking_large if large else self.checking:
            try:
                return await asyncio.to_thread(self._rewritten, route, text)
            except RecursionError as error:
                raise Refusal(400, "the body, or arguments in it, are nested too deeply") from error

    def _rewritten(self, route: str, body: str) -> tuple[bytes, Translation | None]:
        """The body, serialised again: the server reads what was checked, whatever it would see in the original.

        A request of another protocol is checked as the chat request that it becomes.
        """
        try:
            value = json.loads(body)
            json.dumps(value, ensure_ascii=False).encode()
        except ValueError as error:  # half a character, too, which no tokenizer takes
            raise Refusal(400, f"the body is not JSON: {error}") from error
        translation = None
        if route in TRANSLATED:
            if not isinstance(value, dict):
                raise Refusal(400, "the body must be a JSON object")
            translation = TRANSLATED[route](value)
            value, route = translation.chat, translation.route
        if reason := self.rules.refusal(route, value):
            raise Refusal(400, reason)
        if reason := self.rules.length.refusal(route, value):
            raise Refusal(400, reason, code=request_length.CODE)
        return json.dumps(
            value, ensure_ascii=False
        ).encode(), translation  # which the check may have changed: see `Rules.refusal`


def _whole(body: bytes, receive: Receive) -> Receive:
    """What gives the server a body, and then tells it when the client has gone."""
    pending = [body]

    async def replay() -> MutableMapping[str, Any]:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


async def _adapter_blocks(state: Any) -> dict[str, list[Any]]:
    """Name of each adapter → what each of vLLM's workers says about it, see `worker_extension`.

    Of several engines (data parallelism), which all load the same file, the first one's workers answer.

    Args:
        state: of vLLM's application.
    """
    answers = {}
    for name, request in state.openai_serving_models.lora_requests.items():
        file = str(Path(request.lora_path) / filenames.ADAPTER_WEIGHTS)
        arguments = (request.lora_int_id, file)
        answers[name] = await state.engine_client.collective_rpc("lockstep_blocks", args=arguments)
    return answers
