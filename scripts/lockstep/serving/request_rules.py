"""What a request to the endpoint may ask for: routes, fields, limits, and no control tokens in its texts.

vLLM accepts more than a chat needs: a request may bring its own template, have media fetched by URL, or (in
adapter mode on CPUs) stop the engine with one field. Whatever is not listed here is refused, with a reason.
"""

import json
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import atomic, filenames
from lockstep.prompts import answer_tokens
from lockstep.serving import request_fields, request_messages, request_thinking
from lockstep.serving.messages_route import COUNT, MESSAGES
from lockstep.serving.request_fields import CHAT, COMPLETION, TOKENIZE
from lockstep.serving.request_length import LengthBound
from lockstep.serving.responses_route import RESPONSES

if TYPE_CHECKING:
    from lockstep.prompts.template import Template

# Routes that count against max_requests: those that generate, and that of which vLLM bounds no prompt's length.
LIMITED = (CHAT, COMPLETION, RESPONSES, MESSAGES, COUNT)
# In the messages and tools of one request: each is searched for control tokens, 0.2 s in all.
MOST_TEXTS, MOST_NAMES = 16384, 16384
# Outside loopback only ROUTES are served, and all but /health need the key.
ROUTES = {
    "/health": "GET",
    "/metrics": "GET",
    "/v1/models": "GET",
    CHAT: "POST",
    COMPLETION: "POST",
    RESPONSES: "POST",
    MESSAGES: "POST",
    COUNT: "POST",
}
LOCAL_ROUTES = {"/version": "GET", TOKENIZE: "POST", "/detokenize": "POST"}


@dataclass(frozen=True)
class Rules:
    """What a server accepts.

    Args:
        tokenizer: folder of the tokenizer and template that the server answers with.
        allow_tokens: added tokens that texts may hold.
        vocabulary: tokens that a prompt of ids may name are below this.
        max_n: answers to a prompt.
        max_body_bytes: size of a request's body.
        max_requests: requests of LIMITED, running and waiting.
        loopback: whether only this machine reaches the server.
        prompt_logprobs: whether it can give log-probabilities of a prompt's tokens.
        max_prompts: prompts in a request of completions; also answers to all of them, where max_n is not more.
        tools: whether it reads calls of tools out of answers.
        allowed_origins: of web pages that may call it from a browser.
        max_model_len: tokens of prompt and answer together.
    """

    tokenizer: str
    allow_tokens: list[str]
    vocabulary: int
    max_n: int
    max_body_bytes: int
    max_requests: int
    loopback: bool
    prompt_logprobs: bool
    max_prompts: int
    tools: bool
    allowed_origins: list[str] = field(default_factory=list)
    max_model_len: int = sys.maxsize

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
        text = (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
        chat = template.load(folder, text, self.allow_tokens)
        chat.control_token("", by_assistant=True)  # finds these tokens now, and not while the first client waits
        return chat

    @cached_property
    def length(self) -> LengthBound:
        """What a request's text may have at the most."""
        return LengthBound(self.template, self.max_model_len)

    @cached_property
    def thinking(self) -> bool:
        """Whether the model thinks, as in training."""
        contract = Path(self.tokenizer) / filenames.CONTRACT
        rows = atomic.read_json(contract).get("rows_with_thoughts", 0) if contract.exists() else 0
        return request_thinking.thinks(self.template, trained=rows > 0)

    @property
    def routes(self) -> dict[str, str]:
        """Path → method."""
        return ROUTES | LOCAL_ROUTES if self.loopback else ROUTES

    def refusal(self, route: str, body: Any) -> str | None:
        """Why a request's body is refused, in one sentence; None where it is accepted.

        The body is changed in place to what vLLM is to read: without what is null or changes nothing, and with its
        messages in one form, see `request_fields` and `request_messages`.
        """
        if not isinstance(body, dict):
            return "the body must be a JSON object"
        if route not in request_fields.TAKEN:
            return None
        request_fields.tidy(route, body)
        if route != COMPLETION and (reason := request_thinking.take(body, self.template, self.thinking)):
            return reason
        if reason := request_fields.refusal(route, body) or request_messages.tidy(body.get("messages"), MOST_TEXTS):
            return reason
        request_messages.tidy_tools(body.get("tools"))
        if body.get("add_special_tokens"):
            return "add_special_tokens would change the prompt that training saw"
        if not self.prompt_logprobs and (body.get("prompt_logprobs") is not None or body.get("echo")):
            return "prompt_logprobs and echo stop vLLM's engine while it serves adapters on a CPU: take logprobs"
        if route != TOKENIZE and (reason := self._refuse_tools(body)):
            return reason
        reason = self._refuse_counts(body) or self._refuse_texts(body)
        return reason or request_messages.refuse_roles(body.get("messages"))

    def _refuse_tools(self, body: dict[str, Any]) -> str | None:
        """For tools whose calls this server could not read out of an answer; it may always be told to call none."""
        choice = body.get("tool_choice", "auto")
        if isinstance(choice, dict) and choice.get("type", "function") != "function":
            return (
                f"tool_choice of the type {choice['type']!r:.40} is not known here: send the tools that may be called"
            )
        if self.tools or not body.get("tools") or choice == "none":
            return None
        if "tools" not in self.template.text:
            return (
                "the chat template of this run has no place for tools, so the model would never see them: leave them "
                "out, or train with another --data.template"
            )
        return (
            "no parser of vLLM's is known to read this run's calls of tools: send tool_choice 'none', or serve with "
            "--serve.tool_call_parser NAME"
        )

    def _refuse_counts(self, body: dict[str, Any]) -> str | None:
        """For too many answers or prompts, and for token ids that the model does not have."""
        answers = body.get("n", 1)
        if not (type(answers) is int and 1 <= answers <= self.max_n):
            return f"n is {answers!r:.40}, and a prompt gets at most {self.max_n} answers (--serve.max_n)"
        prompt = body.get("prompt")
        if isinstance(prompt, list):
            prompts = [part for part in prompt if isinstance(part, str | list)]
            if len(prompts) > self.max_prompts:
                return f"{len(prompts)} prompts, and one request holds at most {self.max_prompts} (--serve.max_prompts)"
            if len(prompts) * answers > max(self.max_prompts, self.max_n):
                return (
                    f"{len(prompts)} prompts with n {answers} are {len(prompts) * answers} answers, and one request "
                    f"gets at most {max(self.max_prompts, self.max_n)} (--serve.max_prompts)"
                )
            # one prompt as a list of ids, or several of them, as texts or lists of ids
            ids = list(chain(*(part for part in prompts if isinstance(part, list)))) if prompts else prompt
            wrong = [token for token in ids if type(token) is not int or not 0 <= token < self.vocabulary]
            if wrong:
                return f"{wrong[0]!r:.40} in the prompt is no token id below {self.vocabulary}"
        return None

    def _refuse_texts(self, body: dict[str, Any]) -> str | None:
        """For what is no text, and for texts that would act as control tokens, alone or where two of them meet."""
        answers, rest = answer_tokens.apart(body.get("messages"))
        texts, names = _texts([rest, body.get("tools")])
        if len(texts) + len(answers) + len(self.template.pieces([*texts, *answers])) > MOST_TEXTS:
            return f"messages and tools hold more than {MOST_TEXTS} texts"
        if len(names) > MOST_NAMES:
            return f"messages and tools hold more than {MOST_NAMES} different names of fields"
        texts += names
        by_whom = [*((text, False) for text in texts), *((text, True) for text in answers)]
        for text, by_assistant in by_whom:
            if token := self.template.control_token(text, by_assistant):
                return f"a message holds {token!r}, which would act as a control token: {self._cure(token)}"
        if token := self.template.seam_token([*texts, *answers]):
            return f"two texts of this request would become {token!r} where they meet, a control token: change one"
        return None

    def _cure(self, token: str) -> str:
        if token in self.template.answer_tokens:
            return "only the assistant's messages may hold it"
        if self.template.has_meaning(token):
            return "leave it out"
        return "leave it out, or train with --data.allow_tokens, as this tokenizer cannot encode it as text"


def _texts(value: Any) -> tuple[list[str], list[str]]:
    """Every text in a JSON value, also in a tool call's arguments, JSON in a string; and the names of fields, once."""
    texts: list[str] = []
    names: dict[str, None] = {}
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            names |= dict.fromkeys(part)
            pending += part.values()
            if isinstance(arguments := part.get("arguments"), str):
                with suppress(ValueError):  # vLLM takes an empty object for what is no JSON
                    pending.append(json.loads(arguments))
        elif isinstance(part, list):
            pending += part
    return texts, list(names)
