"""Asking an endpoint that somebody else may have started: few questions at a time, and which engine answers them.

An engine is known by the routes that it has, not by what it says of itself. Its key comes from LOCKSTEP_API_KEY,
redirects are not followed, and everything together is bounded in time.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lockstep.endpoint import protocol
from lockstep.endpoint.http_client import HttpClient, NoResponse
from lockstep.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 4  # requests: others use the endpoint, too
PATIENCE = 120.0  # seconds without a byte
LONGEST = 900.0  # seconds for all questions together
STEP = 120.0  # seconds that the questions of a proof should take on a slow engine: it is asked fewer of them
FEWEST = 12  # questions of a kind in any case
MEASURED = 8  # questions that tell how slow an engine is
LOADING_PAUSE = 1.0  # seconds before an answer 503 or 429 is asked for again
VLLM, SGLANG, LLAMA_CPP, OLLAMA, LM_STUDIO, TRANSFORMERS, UNKNOWN = (
    "vLLM", "SGLang", "llama.cpp", "Ollama", "LM Studio", "transformers", "an unknown engine",
)  # fmt: skip
QUANTIZING = frozenset({LLAMA_CPP, OLLAMA, LM_STUDIO})  # engines whose files are mostly quantized ones


class NotOffered(UserError):
    """The endpoint does not do what it was asked to do."""


class Silent(UserError):
    """The endpoint, which answered before, does so no longer, or takes too long for all questions."""


@dataclass
class Endpoint:
    """An endpoint and the model behind it that is asked. Several threads may ask.

    Attributes:
        url: ends in /v1.
        model: name that requests carry.
        engine: which one it is.
        card: what it says of the model in its list.
        about: what the engine says of itself on routes of its own: llama.cpp's /props, Ollama's /api/show, …
    """

    url: str
    model: str = ""
    engine: str = UNKNOWN
    card: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._http = HttpClient(self.url)
        self._end = time.monotonic() + LONGEST
        self._slowest = 0.0  # seconds that a question to the model took; the first ones count
        self._asked = 0

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the endpoint answers to a POST, or to a GET where there is no body.

        Raises:
            NotOffered: it has no such route, refuses the question, or answers something else than JSON.
            Silent: no answer came, or all the time is spent.
            UserError: it wants a key, or redirects.
        """
        for last in (False, False, True):
            began = time.monotonic()
            if began > self._end:
                raise Silent(f"{self.url} did not answer all questions within {LONGEST:.0f} s")
            try:
                response = self._http.request(path, body, PATIENCE)
            except NoResponse as error:
                raise Silent(str(error)) from error
            if body is not None and response.status == 200:
                self._note(time.monotonic() - began)
            if response.status not in (429, 503) or last:
                break
            time.sleep(LOADING_PAUSE)
        if response.status in (401, 403) and path.startswith("/v1"):
            raise UserError(f"{self.url} wants a key, or another one: set {protocol.KEY}")
        if 300 <= response.status < 400:
            raise UserError(f"{self.url}{path} redirects elsewhere, which is not followed: give the final address")
        if response.status != 200:
            raise NotOffered(f"{path}: {response.status} {_words(response.text)}")
        try:
            answer = json.loads(response.text)
        except (ValueError, RecursionError) as error:
            raise NotOffered(f"{path}: what came is no JSON") from error
        return answer

    def _note(self, seconds: float) -> None:
        self._asked += 1
        if self._asked <= MEASURED:
            self._slowest = max(self._slowest, seconds)

    def affordable(self, subjects: Sequence[T], seconds: float = STEP) -> list[T]:
        """Evenly spread subjects of a question, as many as are answered in about that time, and a few in any case."""
        most = max(FEWEST, int(seconds * AT_ONCE / self._slowest)) if self._slowest else len(subjects)
        return list(subjects[:: -(-len(subjects) // most) or 1])

    def ask_all(self, question: Callable[[T], R], subjects: Sequence[T]) -> list[R]:
        """The answers to a question about each subject, in order; AT_ONCE are asked together."""
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            return list(pool.map(question, subjects))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def chat(self, messages: Sequence[Any], tools: Sequence[Any] | None = None, **fields: Any) -> dict[str, Any]:
        """An answer of the chat route, whole. Raises NotOffered."""
        body = {"model": self.model, "messages": list(messages), **fields}
        if tools:
            body["tools"] = list(tools)
        answer = self.ask("/v1/chat/completions", body)
        if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list) or not answer["choices"]:
            raise NotOffered("/v1/chat/completions: the answer has no choices")
        return answer

    def offers(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What `ask` answers, or None where that is not offered."""
        try:
            return self.ask(path, body)
        except NotOffered:
            return None


def connect(url: str, model: str | None) -> Endpoint:
    """The endpoint at an address, its engine recognised and one of its models chosen.

    Args:
        url: with or without /v1 at its end.
        model: name that requests carry; None where it serves only one.

    Raises:
        UserError: it cannot be reached, or the name is not among its models, or none is given and it has several.
    """
    endpoint = Endpoint(url.rstrip("/").removesuffix("/v1") + "/v1")
    listed, refusal = None, ""
    try:
        listed = endpoint.ask("/v1/models")
    except NotOffered as error:  # such as 503 while it loads
        refusal = f" ({error})"
    except Silent as error:
        raise UserError(f"{url} cannot be reached: {error}") from error
    cards = listed.get("data") if isinstance(listed, dict) else None
    cards = [card for card in cards or () if isinstance(card, dict) and isinstance(card.get("id"), str)]
    names = [card["id"] for card in cards]
    if model is None:
        if len(names) != 1:
            has = f"has {len(names)} models ({', '.join(names[:5])})" if names else f"lists no model{refusal}"
            raise UserError(f"{url} {has}: say which with --model")
        model = names[0]
    endpoint.model = model
    endpoint.card = next((card for card in cards if card["id"] == model), {})
    _recognise(endpoint)
    if names and model not in names and endpoint.engine in (VLLM, SGLANG):
        raise UserError(f"{url} has no model {model}; it has {', '.join(names[:5])}")
    return endpoint


def _recognise(endpoint: Endpoint) -> None:
    """Note engine and what it says of itself, by routes that only one engine has."""
    if isinstance(props := endpoint.offers("/props"), dict) and "default_generation_settings" in props:
        endpoint.engine, endpoint.about = LLAMA_CPP, props
        return
    if isinstance(endpoint.offers("/api/version"), dict):
        endpoint.engine, endpoint.about = OLLAMA, endpoint.offers("/api/show", {"model": endpoint.model}) or {}
        return
    for path in ("/model_info", "/get_model_info"):
        if isinstance(about := endpoint.offers(path), dict) and "model_path" in about:
            endpoint.engine, endpoint.about = SGLANG, about
            return
    if isinstance(endpoint.offers("/api/v0/models"), dict):
        endpoint.engine = LM_STUDIO
        return
    routes = endpoint.offers("/openapi.json")
    paths = routes.get("paths", {}) if isinstance(routes, dict) else {}
    if {"/load_model", "/reset"} <= paths.keys():
        endpoint.engine = TRANSFORMERS
    elif isinstance(endpoint.offers("/version"), dict) or "max_model_len" in endpoint.card:
        endpoint.engine = VLLM  # behind Lockstep's door its card alone is seen


def _words(text: str) -> str:
    """The first words of an error's body, on one line."""
    try:
        error = json.loads(text).get("error", text)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:200]
