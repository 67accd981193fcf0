"""Control tokens that arise where a template writes two texts next to each other.

Neither text needs to contain the whole token: an answer that ends with `<|im_` and a call whose name begins with
`end|>` form one if the template writes nothing between them, and so does a key `think` in a template that writes `<`
before keys and `>` after them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from jinja2 import Environment, TemplateSyntaxError

Place = tuple[str, int]  # a token, and how many of its characters are before the seam
CUTTING = {"split", "rsplit", "replace", "partition", "rpartition", "removeprefix", "removesuffix"}  # in templates


class Seams:
    """Finds control tokens that can be put together from pieces.

    Args:
        tokens: the control tokens.
        source: the chat template, whose own literal texts can be pieces, too.

    Attributes:
        begins: a beginning of a token → the places up to which it reaches.
        ends: an end of a token → the places from which it goes on.
        inner: a part from the middle of a token → (token, where it starts, where it ends).
        longest: characters of the longest token.
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
        literals = _literals(source)
        self.template_begun, self.template_ended = self._begun(literals), self._ended(literals)

    def token(self, texts: Sequence[str]) -> str | None:
        """A control token that these texts could form, in whatever order the template writes them; or None.

        A token counts only if a part of it comes from the texts: what the template writes by itself is intended.
        """
        from_texts = self._begun(texts)  # places up to which a token can be put together with a part from the texts,
        reached = from_texts | self.template_begun  # and all such places
        middles: set[tuple[str, int, int]] = set()
        for text in texts:
            middles |= self.inner.get(text, set()) | self.inner.get(text.strip(), set())
        # A text that is a middle part leads from one place to a later one, and that may be where the next one starts.
        grown = True
        while grown:
            further = {(token, last) for token, place, last in middles if (token, place) in reached}
            grown = not further <= from_texts
            from_texts |= further
            reached |= further
        complete = (reached & self._ended(texts)) | (from_texts & self.template_ended)
        return min(complete)[0] if complete else None

    def _begun(self, texts: Iterable[str]) -> set[Place]:
        """The places up to which tokens are written at the end of a text; templates may trim texts."""
        places: set[Place] = set()
        for text in texts:
            for tail in {text[-self.longest :], text.rstrip()[-self.longest :]}:
                for start in range(len(tail)):
                    places |= self.begins.get(tail[start:], set())
        return places

    def _ended(self, texts: Iterable[str]) -> set[Place]:
        """The places from which tokens go on at the beginning of a text."""
        places: set[Place] = set()
        for text in texts:
            for head in {text[: self.longest], text.lstrip()[: self.longest]}:
                for end in range(1, len(head) + 1):
                    places |= self.ends.get(head[:end], set())
        return places


def cut_words(source: str) -> set[str]:
    """The words at which a template cuts texts: `</think>` in `text.split('</think>')`, `/think` where it is replaced.

    What it cuts out of the middle of a text brings the pieces on both sides together. Spaces and single signs, which
    templates put something else for, do not count.
    """
    words = set()
    try:
        tokens = [token for token in Environment().lex(source) if token[1] != "whitespace"]
    except TemplateSyntaxError:
        return set()
    for (_, _, name), (_, _, opening), (_, kind, word) in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if name in CUTTING and opening == "(" and kind == "string":
            words.add(_unquoted(word))
    return {word for word in words if len(word.strip()) > 1}


def _unquoted(literal: str) -> str:
    return literal[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape", "replace")


def _literals(source: str) -> list[str]:
    """The texts that a template itself writes: those between its blocks, and those in quotes."""
    literals: list[str] = []
    try:
        for _, kind, value in Environment().lex(source):
            if kind == "data":
                literals.append(value)
            elif kind == "string":
                literals.append(_unquoted(value))
    except TemplateSyntaxError:  # rendering it reports that
        return []
    return literals
