"""What a request to the endpoint may ask for: routes, fields, limits, and no control tokens in its texts.

vLLM accepts more than a chat needs: a request may bring its own template, have media fetched by URL, or (in
adapter mode on CPUs) stop the engine with one field. Whatever is not listed here is refused, with a reason.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import atomic, filenames

if TYPE_CHECKING:
    from lockstep.prompts.template import Template

CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
GENERATING = (CHAT, COMPLETION)
MOST_TEXTS = 4096  # in one request: each is searched for control tokens
# Outside loopback only ROUTES are served, and all but /health need the key.
ROUTES = {"/health": "GET", "/metrics": "GET", "/v1/models": "GET", CHAT: "POST", COMPLETION: "POST"}
LOCAL_ROUTES = {"/version": "GET", TOKENIZE: "POST", "/detokenize": "POST"}

SAMPLING = {
    "model", "max_tokens", "min_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "ignore_eos", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "allowed_token_ids", "bad_words", "logprobs", "prompt_logprobs", "logprob_token_ids", "stream", "stream_options",
    "response_format", "structured_outputs", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "return_token_ids", "return_tokens_as_token_ids", "request_id", "user", "priority",
}  # fmt: skip
PROMPT = {"add_special_tokens"}  # only as false, as in training
FIELDS = {
    CHAT: SAMPLING | PROMPT | {
        "messages", "tools", "tool_choice", "parallel_tool_calls", "max_completion_tokens", "top_logprobs", "echo",
        "add_generation_prompt", "continue_final_message", "metadata", "store", "service_tier", "include_reasoning",
    },
    COMPLETION: SAMPLING | PROMPT | {"prompt", "echo", "suffix"},
    TOKENIZE: PROMPT | {
        "model", "messages", "prompt", "tools", "add_generation_prompt", "continue_final_message", "return_token_strs",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What a server accepts.

    Args:
        tokenizer: folder of the tokenizer and template that the server answers with.
        allow_tokens: added tokens that texts may hold.
        vocabulary: tokens that a prompt of ids may name are below this.
        max_n: answers to a request; also prompts in a request.
        max_body_bytes: size of a request's body.
        max_requests: requests that generate, running and waiting.
        loopback: whether only this machine reaches the server.
        prompt_logprobs: whether it can give log-probabilities of a prompt's tokens.
    """

    tokenizer: str
    allow_tokens: list[str]
    vocabulary: int
    max_n: int
    max_body_bytes: int
    max_requests: int
    loopback: bool
    prompt_logprobs: bool

    @classmethod
    def read(cls, file: Path) -> "Rules":
        """The rules that `write` wrote."""
        return cls(**atomic.read_json(file))

    def write(self, file: Path) -> None:
        """For the server's own process."""
        file.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=2), encoding="utf-8")

    @cached_property
    def template(self) -> "Template":
        """The template that training used; it knows the control tokens."""
        from lockstep.prompts import template

        folder = Path(self.tokenizer)
        return template.load(folder, (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"), self.allow_tokens)

    @property
    def routes(self) -> dict[str, str]:
        """Path → method."""
        return ROUTES | LOCAL_ROUTES if self.loopback else ROUTES

    def refusal(self, route: str, body: Any) -> str | None:
        """Why a request's body is refused, in one sentence; None where it is accepted."""
        if not isinstance(body, dict):
            return "the body must be a JSON object"
        if route not in FIELDS:
            return None
        if unknown := sorted(body.keys() - FIELDS[route]):
            return f"the field {unknown[0]!r} is not taken here"
        if body.get("add_special_tokens"):
            return "add_special_tokens would change the prompt that training saw"
        if not self.prompt_logprobs and (body.get("prompt_logprobs") is not None or body.get("echo")):
            return "prompt_logprobs and echo stop vLLM's engine while it serves adapters on a CPU: take logprobs"
        return self._refuse_counts(body) or self._refuse_texts(body)

    def _refuse_counts(self, body: dict[str, Any]) -> str | None:
        """For too many answers or prompts, and for token ids that the model does not have."""
        answers = body.get("n")
        if answers is not None and not (type(answers) is int and 1 <= answers <= self.max_n):
            return f"n is {answers!r:.40}, and this server gives at most {self.max_n} answers at a time (--serve.max_n)"
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            prompts = [part for part in prompt if isinstance(part, str | list)]
            if len(prompts) * (answers or 1) > self.max_n:
                return (
                    f"{len(prompts)} prompts in one request, and this server gives at most {self.max_n} answers "
                    f"at a time (--serve.max_n)"
                )
            # one prompt as a list of ids, or several of them, as texts or lists of ids
            ids = list(chain(*(part for part in prompts if isinstance(part, list)))) if prompts else prompt
            wrong = [token for token in ids if type(token) is not int or not 0 <= token < self.vocabulary]
            if wrong:
                return f"{wrong[0]!r:.40} in the prompt is no token id below {self.vocabulary}"
        return None

    def _refuse_texts(self, body: dict[str, Any]) -> str | None:
        """For what is no text, and for texts that would act as control tokens, alone or where two of them meet."""
        messages = body.get("messages")
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, dict) else None
            for part in content if isinstance(content, list) else ():
                if not isinstance(part, dict) or part.get("type", "text") != "text" or part.keys() - {"type", "text"}:
                    return "messages here hold text only: no images, audio, video or files"
        texts = list(islice(_texts([messages, body.get("tools")]), MOST_TEXTS + 1))
        if len(texts) > MOST_TEXTS:
            return f"messages and tools hold more than {MOST_TEXTS} texts"
        for text in texts:
            if token := self.template.control_token(text):
                return f"a message holds {token!r}, which would act as a control token: leave it out"
        if token := self.template.seam_token(texts):
            return f"two texts of this request would become {token!r} where they meet, a control token: change one"
        return None


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value: names of fields, too, and those in a tool call's arguments, JSON in a string."""
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            pending += [*part.keys(), *part.values()]
            if isinstance(arguments := part.get("arguments"), str):
                with suppress(ValueError, RecursionError):
                    pending.append(json.loads(arguments))
        elif isinstance(part, list):
            pending += part
