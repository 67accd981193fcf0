"""The length of a request's text, judged before anything tokenizes it.

vLLM tokenizes a chat of any size before it says that the context is too short for it, which keeps everybody waiting
for seconds. How many tokens a text takes at the least can be told from its characters alone.
"""

import re
from typing import TYPE_CHECKING, Any

from lockstep.errors import UserError
from lockstep.serving.request_fields import COMPLETION

if TYPE_CHECKING:
    from lockstep.prompts.template import Template

CODE = "context_length_exceeded"  # OpenAI's, which clients act on
_RARE = "\n\U0001f9ff"
_ALPHANUMERIC = re.compile("[A-Za-z0-9]+")  # the same in a vocabulary of bytes as in texts


class LengthBound:
    """How much text a context can hold at the most.

    Args:
        chat: the template that training used.
        tokens: of the context, prompt and answer together.
    """

    def __init__(self, chat: "Template", tokens: int) -> None:
        self.chat, self.tokens = chat, tokens
        vocabulary = [*chat.tokenizer.get_vocab(), "x"]
        self.longest = max(map(len, vocabulary))  # characters of one token
        self.most_alphanumeric = max(map(_alphanumeric, vocabulary))  # letters and digits of ASCII in one token
        added = chat.tokenizer.added_tokens_decoder.values()
        self.takes_spaces = any(token.lstrip or token.rstrip for token in added)  # any number of them, around it
        self.unknown = re.compile("(?!)")
        if chat.tokenizer.unk_token_id in chat.encode([_RARE])[0]:  # one for any number of unknown characters
            self.unknown = re.compile(f"[^{re.escape(''.join(set(''.join(vocabulary))))}]+")

    @property
    def surely_fits(self) -> int:
        """Characters of any text that is not looked at more closely."""
        return self.tokens * min(self.longest, self.most_alphanumeric)

    def refusal(self, route: str, body: dict[str, Any]) -> str | None:
        """Why a request is refused, in one sentence; None where its prompts may fit.

        Args:
            body: after `Rules.refusal`.
        """
        if route == COMPLETION or "prompt" in body:
            prompts = body.get("prompt")
            texts = [text for text in (prompts if isinstance(prompts, list) else [prompts]) if isinstance(text, str)]
        else:
            texts = self._rendered(body)
        fewest = max(map(self.fewest_tokens, texts), default=0)
        if fewest <= self.tokens:
            return None
        return (
            f"This model's maximum context length is {self.tokens} tokens, and this request's text has at least "
            f"{fewest}: shorten it (--serve.max_model_len)"
        )

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that no tokenization of a text can be below."""
        if len(text) <= self.surely_fits:
            return 0
        text = self.chat.normalized(text)
        text = self.unknown.sub("", " ".join(text.split()) if self.takes_spaces else text)
        return max(-(-len(text) // self.longest), -(-_alphanumeric(text) // self.most_alphanumeric))

    def _rendered(self, body: dict[str, Any]) -> list[str]:
        """The prompt of a chat that could be too long: templates leave texts out, such as earlier thoughts."""
        if _characters(body.get("messages")) + _characters(body.get("tools")) <= self.surely_fits:
            return []
        try:
            return [self.chat.render(body["messages"], body.get("tools"))]
        except (UserError, KeyError):  # vLLM says what is wrong with it
            return []


def _alphanumeric(text: str) -> int:
    return sum(map(len, _ALPHANUMERIC.findall(text)))


def _characters(value: Any) -> int:
    """Characters of all texts in a JSON value."""
    count, pending = 0, [value]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            count += len(part)
        elif isinstance(part, dict):
            pending += [*part, *part.values()]
        elif isinstance(part, list):
            pending += part
    return count
