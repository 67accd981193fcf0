"""Control tokens that come into being where a template puts two texts side by side.

No text need hold a whole one: an answer that ends with `<|im_` and a call whose name begins with
`end|>` make one where the template writes nothing between them, and so does a key `think` in a
template that writes `<` before keys and `>` after them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from jinja2 import Environment, TemplateSyntaxError

Place = tuple[str, int]  # a token, and how many of its characters stand before the seam


class Seams:
    """What can be put together to a control token.

    Args:
        tokens: the control tokens.
        source: the chat template, whose own pieces of text take part.
    """

    def __init__(self, tokens: Iterable[str], source: str) -> None:
        self.begins: defaultdict[str, set[Place]] = defaultdict(set)
        self.ends: defaultdict[str, set[Place]] = defaultdict(set)
        self.inner: defaultdict[str, set[tuple[str, int, int]]] = defaultdict(set)
        self.longest = 0
        for token in tokens:
            self.longest = max(self.longest, len(token))
            for place in range(1, len(token)):
                self.begins[token[:place]].add((token, place))
                self.ends[token[place:]].add((token, place))
                for last in range(place + 1, len(token)):
                    self.inner[token[place:last]].add((token, place, last))
        own = _pieces(source)
        self.own_begun, self.own_ended = self._begun(own), self._ended(own)

    def token(self, texts: Sequence[str]) -> str | None:
        """A control token that these texts could become side by side, wherever the template puts them."""
        made = self._begun(texts)  # with something of the texts in them
        every = made | self.own_begun
        inner = {found for text in texts for part in (text, text.strip()) for found in self.inner.get(part, ())}
        grown = True
        while grown:
            more = {(token, last) for token, place, last in inner if (token, place) in every}
            grown = not more <= made
            made |= more
            every |= more
        found = (every & self._ended(texts)) | (made & self.own_ended)
        return min(found)[0] if found else None

    def _begun(self, texts: Iterable[str]) -> set[Place]:
        """The places up to which a token stands at a text's end; templates trim texts."""
        return {
            found
            for text in texts
            for part in {text[-self.longest :], text.rstrip()[-self.longest :]}
            for start in range(len(part))
            for found in self.begins.get(part[start:], ())
        }

    def _ended(self, texts: Iterable[str]) -> set[Place]:
        """The places from which on a token stands at a text's beginning."""
        return {
            found
            for text in texts
            for part in {text[: self.longest], text.lstrip()[: self.longest]}
            for end in range(1, len(part) + 1)
            for found in self.ends.get(part[:end], ())
        }


def _pieces(source: str) -> list[str]:
    """The texts that stand in a template: between its blocks, and in quotes."""
    try:
        found = [(kind, value) for _, kind, value in Environment().lex(source) if kind in ("data", "string")]
    except TemplateSyntaxError:  # whoever renders it says so
        return []
    return [
        value if kind == "data" else value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape", "replace")
        for kind, value in found
    ]
