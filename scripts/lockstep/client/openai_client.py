"""Asking an OpenAI-compatible endpoint: an answer is whole, or there is none and one line says why.

vLLM ends an answer that it gives up on with a finish reason of its own, and a proxy that times out ends a stream
as if nothing were wrong: so an answer counts only with status 200 and a finish reason that stands for a regular end.
A redirect is not followed: it would take the question to a server that nobody named.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from lockstep.client import conversation, request_errors
from lockstep.client.request_errors import PATIENCE, NoAnswer
from lockstep.client.server_wait import ServerWait
from lockstep.client.stream_silence import Silence
from lockstep.endpoint import address, protocol
from lockstep.errors import UserError
from lockstep.prompts.template import Message
from lockstep.settings.schema import Sampling
from lockstep.text.unicode import printable

T = TypeVar("T")
ENDS = ("stop", "length", "tool_calls")  # regular ends; with `abort` or `error` vLLM gives up
RETRIES, TIMEOUT = 5, 120.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0  # seconds before the first retry, doubled each time up to the second


@dataclass(frozen=True)
class Answer:
    """A whole answer. Token counts are None where the server does not report them."""

    text: str
    finish_reason: str  # `length`: the model was cut off
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float  # of the try that succeeded
    first_token_seconds: float | None  # None where the answer came in one piece
    reasoning: str = ""  # the thought before it, where the server tells that apart

    @property
    def whole(self) -> str:
        """Thought and answer as one text, as a stream shows them."""
        return f"{conversation.THINK}{self.reasoning}{conversation.ANSWER}{self.text}" if self.reasoning else self.text


def request(sampling: Sampling, model: str, messages: list[Message]) -> dict[str, Any]:
    """The body of a chat request; settings that OpenAI's API lacks go into vLLM's extra fields."""
    fields = sampling.model_dump(exclude_none=True)
    extra = {key: fields.pop(key) for key in ("top_k", "repetition_penalty")}
    return {"model": model, "messages": messages, **fields, "extra_body": extra}


class Endpoint:
    """A server, and how patiently it is asked. Several threads may ask at once.

    Args:
        url: ends in /v1.
        retries: how often a request is sent again that failed before anything of its answer was shown.
        timeout: seconds without a byte, or in a stream without text, after which the server counts as hung.
        notice: is told about each retry before it, in one line.
        wait: for a server that is about to open; not at all where none is given.

    Raises:
        UserError: a key that no header can carry, or an address or proxy that cannot be asked.
    """

    def __init__(
        self,
        url: str,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        notice: Callable[[str], None] = lambda line: None,
        wait: ServerWait | None = None,
    ) -> None:
        import httpx2
        from openai import DefaultHttpxClient, OpenAI, Timeout

        key = protocol.key() or "EMPTY"
        self.url, self.retries, self.timeout, self.notice = url, retries, timeout, notice
        self.wait = wait or ServerWait(url, seconds=0)
        patience = Timeout(timeout, connect=min(timeout, 10.0))
        self._silence = Silence()
        # Loopback is reached directly, whatever proxy the environment names; retries are made here.
        try:
            http = DefaultHttpxClient(
                trust_env=not address.is_local(url),
                timeout=patience,
                follow_redirects=False,
                event_hooks={"response": [self._watch]},
            )
            self.client = OpenAI(base_url=url, api_key=key, http_client=http, timeout=patience, max_retries=0)
        except (httpx2.InvalidURL, ValueError, ImportError) as error:  # such as a SOCKS proxy in ALL_PROXY
            raise UserError(f"{url} cannot be asked: {error}") from error

    def ask(self, body: dict[str, Any], stream: bool = True, show: Callable[[str], None] | None = None) -> Answer:
        """The answer to a request.

        Args:
            body: as `request` makes it.
            stream: have it sent while it is generated, so that a hung server is noticed in a long answer, too.
            show: receives each piece of a stream; an answer of which it has shown a part is not asked for again.

        Raises:
            NoAnswer: there is none, or only a part of one.
        """
        return self._again(lambda: self._stream(body, show) if stream else self._whole(body))

    def prompt_log_probs(self, model: str, ids: Sequence[int]) -> list[float]:
        """The log-probability, in nats, of each token after the first, where the server is vLLM and gives them.

        Raises:
            NoAnswer: there are none.
        """

        def asked() -> list[float]:
            with self._explained(model):
                completion = self.client.completions.create(
                    model=model, prompt=list(ids), max_tokens=1, temperature=0, extra_body={"prompt_logprobs": 0}
                )
                places: Any = completion.choices[0].model_dump().get("prompt_logprobs")
                if not places:
                    raise NoAnswer(f"{self.url} gives no log-probabilities of prompts", "request", "no_log_probs")
                return [float(place[str(token)]["logprob"]) for token, place in zip(ids[1:], places[1:], strict=True)]

        return self._again(asked)

    def model(self, *names: str) -> str:
        """The first of these names under which a model is served, or the only model there is.

        Raises:
            NoAnswer: none of them is served, or the server does not say.
        """

        def chosen() -> str:
            with self._explained(names[0]):
                offered = self._offered()
            matches = [name for name in names if name in offered] or (offered if len(offered) == 1 else [])
            if not matches:
                message = f"{self.url} serves {', '.join(offered) or 'nothing'}, and not {' or '.join(names)}"
                raise NoAnswer(message, "always", "unknown_model")
            return matches[0]

        return self._again(chosen)

    def _again(self, work: Callable[[], T]) -> T:
        """Do the work, and again after a pause where it may succeed then."""
        attempt = 0
        while True:
            try:
                answer = work()
                self.wait.answered()
                return answer
            except NoAnswer as error:
                if not error.shown and self.wait.pause(error):  # it opens soon: that is no attempt
                    continue
                if error.shown or error.scope != "moment" or attempt == self.retries or (error.pause or 0) > PATIENCE:
                    raise
                backoff = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * random.uniform(0.8, 1.2)
                pause = max(backoff, error.pause or 0)  # many that were sent away come back one by one
                attempt += 1
                self.notice(f"{error}; trying again in {pause:.1f} s ({attempt} of {self.retries})")
                time.sleep(pause)

    def record(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to one of many requests, or its `error`, as JSON.

        Raises:
            NoAnswer: the others would fail, too: it is not this request that the server cannot answer.
        """
        started = time.monotonic()
        try:
            answer = self.ask(body)
        except NoAnswer as error:
            if error.scope == "always" or (error.scope != "request" and not self.answers(body["model"])):
                raise
            return {"error": str(error), "seconds": round(time.monotonic() - started, 3)}
        return {
            "answer": answer.text,
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "seconds": round(answer.seconds, 3),
            "first_token_seconds": answer.first_token_seconds and round(answer.first_token_seconds, 3),
        }

    def answers(self, model: str) -> bool:
        """Whether the server answers anything at all now: it is asked for one token."""
        body = {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
        try:
            self._whole(body | {"timeout": min(self.timeout, 30.0)})
        except NoAnswer:
            return False
        return True

    def _whole(self, body: dict[str, Any]) -> Answer:
        started = time.monotonic()
        with self._explained(body["model"]):
            response = self._parsed(self.client.chat.completions.with_raw_response.create(**body))
            if isinstance(response, str):  # the SDK returns what is no JSON as it came
                raise NoAnswer(f"{self.url} is no OpenAI endpoint: its address ends in /v1", "always", "not_openai")
            if error := (response.model_extra or {}).get("error"):
                raise NoAnswer(f"the server failed in its answer: {_line(error)}", "moment", "given_up")
            choice = next(choice for choice in response.choices if not choice.index)
            text, thought = _text(choice.message.content or ""), _thought(choice.message)
            return _answer(text, thought, choice.finish_reason, response.usage, started, None)

    def _stream(self, body: dict[str, Any], show: Callable[[str], None] | None) -> Answer:
        started, first = time.monotonic(), None
        pieces: list[str] = []
        thoughts: list[str] = []
        reason = usage = None
        try:
            with (
                self._explained(body["model"], lambda: reason is not None),
                closing(self._events(body)) as events,
                self._silence.limited(self.timeout),
            ):
                for event in events:
                    usage = event.usage or usage
                    for choice in event.choices:
                        if choice.index:  # another answer than the one that was asked for
                            continue
                        piece, thought = _text(choice.delta.content or ""), _thought(choice.delta)
                        if piece or thought:
                            first = first or time.monotonic() - started
                            self._silence.broken()
                            if show:
                                show(_shown(thought, piece, bool(thoughts), bool(pieces)))
                            thoughts += [thought] if thought else []
                            pieces += [piece] if piece else []
                        reason = choice.finish_reason or reason
                    if reason and reason not in ENDS:  # whatever comes after it
                        break
            if show and thoughts and not pieces:
                show(conversation.ANSWER)
            return _answer("".join(pieces), "".join(thoughts), reason, usage, started, first)
        except NoAnswer as error:
            if show and (pieces or thoughts):
                error.shown, error.code = True, "incomplete"
                error.args = (f"the answer above is incomplete: {error}",)
            raise

    def _events(self, body: dict[str, Any]) -> Any:
        """The SDK's stream of a chat request."""
        options = {"include_usage": True}
        create: Any = self.client.chat.completions.with_raw_response.create
        return self._parsed(create(**body, stream=True, stream_options=options))

    def _parsed(self, raw: Any) -> Any:
        """What the SDK makes of a response. Raises NoAnswer where its status is another success than 200."""
        if raw.status_code != 200:
            message = f"{self.url} answered with status {raw.status_code}, and an answer comes with 200"
            raise NoAnswer(message, "moment", "not_openai")
        return raw.parse()

    def _watch(self, response: Any) -> None:
        """Have every piece of a response's body ask how long there was no text: pings alone keep a stream alive."""
        response.stream = self._silence.watched(response.stream)

    @contextmanager
    def _explained(self, model: str, ended: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Turn every way in which a request fails into a NoAnswer. A connection may break once `ended`."""
        import openai

        try:
            yield
        except openai.APIConnectionError as error:
            if not ended():
                raise request_errors.of_connection(error, self.url, self.timeout) from error
        except openai.AuthenticationError as error:
            raise NoAnswer("the server wants a key: set LOCKSTEP_API_KEY", "always", "key_wanted") from error
        except openai.NotFoundError as error:
            message = f"the server has no model {model!r}; {self._which_models()}"
            raise NoAnswer(message, "always", "unknown_model") from error
        except openai.APIStatusError as error:
            raise request_errors.of_status(error) from error
        except openai.APIError as error:
            message = f"the server failed in the middle of the answer: {error.message}"
            raise NoAnswer(message, "moment", "given_up") from error
        except UnicodeEncodeError as error:
            message = "the question holds half a character (a lone surrogate), which cannot be sent"
            raise NoAnswer(message, "request", "not_sendable") from error
        except (ValueError, RecursionError) as error:  # JSON or a character that ends in the middle, among others
            raise NoAnswer("the answer broke off: what came is not JSON", "moment", "broke_off") from error
        except (AttributeError, LookupError, StopIteration, TypeError) as error:  # the SDK does not check all this
            message = f"{self.url} answered with what is no chat completion"
            raise NoAnswer(message, "moment", "not_openai") from error

    def _offered(self) -> list[str]:
        """The names of the models that the server offers."""
        return [_text(card.id) for card in self.client.models.list()]

    def _which_models(self) -> str:
        """What the server offers instead, for the message that it has no such model."""
        import openai

        try:
            names = ", ".join(self._offered())
        except (openai.OpenAIError, AttributeError, TypeError, ValueError, RecursionError):
            return f"{self.url} may be no OpenAI endpoint: its address ends in /v1"
        return f"it serves {names}: choose one with --model"


def _line(error: Any) -> str:
    """An error that a server put into its answer, in one line."""
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:500]


def _text(value: Any) -> str:
    """A part of an answer. Raises TypeError where it is no text, or half a character."""
    if not isinstance(value, str) or printable(value) != value:
        raise TypeError("no text")
    return value


def _thought(message: Any) -> str:
    """What a message or a piece of one holds of the model's thought, by the names that servers have for it."""
    more = message.model_extra or {}
    return _text(more.get("reasoning") or more.get("reasoning_content") or "")


def _shown(thought: str, piece: str, thinking: bool, answering: bool) -> str:
    """What a stream shows of a piece: thoughts between marks, as the model writes them."""
    begin = conversation.THINK if thought and not thinking else ""
    end = conversation.ANSWER if piece and (thinking or thought) and not answering else ""
    return f"{begin}{thought}{end}{piece}"


def _answer(text: str, thought: str, reason: str | None, usage: Any, started: float, first: float | None) -> Answer:
    if reason is None:
        message = "the answer broke off: the server or the connection ended it without a finish reason"
        raise NoAnswer(message, "moment", "broke_off")
    if reason not in ENDS:
        raise NoAnswer(f"the server gave the answer up ({reason})", "moment", "given_up")
    counts = [getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else None for count in counts)
    return Answer(text, reason, prompt, completion, time.monotonic() - started, first, thought)
