"""In what two tokenizers and templates differ: in their files, over the whole vocabulary, and on conversations."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.nodes import Node

from lockstep.prompts.text_tokens import opens_or_ends_a_turn
from lockstep.verification.chats import Chat
from lockstep.verification.conversations import Conversation

AROUND = 12  # tokens that are shown before a difference
SHOWN = 120  # characters of a text that is shown
# TRL and others mark what an assistant says, for training; it changes no text.
GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
BEHAVIOUR = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")  # parts of tokenizer.json
# Of added tokens: how texts are cut at them, and whether they are left out of answers.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


@dataclass(frozen=True)
class Difference:
    """What is different first.

    Attributes:
        what: a word of verdict.DIAGNOSES.
        text: in words, with the texts.
    """

    what: str
    text: str


def of_vocabularies(trained: Chat, other: Chat) -> Difference | None:
    """The first id that stands for something else; tokens that only the other one has, behind all others, do not count.

    Such a token is one that a tool added to pad with, and that nobody writes.
    """
    ours, theirs = trained.tokenizer, other.tokenizer
    if len(theirs) < len(ours):
        lost = ours.convert_ids_to_tokens(len(theirs))
        return Difference(
            "other_tokens", f"{other.label} has {len(theirs)} tokens for {len(ours)}: {lost!r} is missing"
        )
    ids = list(range(len(ours)))
    pairs = (ours.convert_ids_to_tokens(ids), theirs.convert_ids_to_tokens(ids))
    if place := _first(*pairs):
        token, there = pairs[0][place - 1], pairs[1][place - 1]
        return Difference("other_tokens", f"id {place - 1} is {token!r} in training, and {there!r} in {other.label}")
    texts = (_texts(trained, ids), _texts(other, ids))
    if place := _first(*texts):
        text, there = texts[0][place - 1], texts[1][place - 1]
        return Difference(
            "other_tokens", f"id {place - 1} becomes {text!r} in training, and {there!r} with {other.label}"
        )
    return _added(trained, other)


def _added(trained: Chat, other: Chat) -> Difference | None:
    """The first added token that is treated otherwise."""
    ours, theirs = trained.tokenizer.added_tokens_decoder, other.tokenizer.added_tokens_decoder
    for number in sorted(ours.keys() | theirs.keys()):
        if number >= len(trained.tokenizer):
            if not opens_or_ends_a_turn(theirs[number].content, theirs[number].special) and not _marked(theirs[number]):
                text = f"{other.label} makes one token of {theirs[number].content!r}, which training cut in pieces"
                return Difference("other_tokens", text)
            continue
        token, there = ours.get(number), theirs.get(number)
        if token is None or there is None:
            name = (token or there).content
            where = "training" if there is None else other.label
            return Difference("other_tokens", f"{name!r} is found in any text by {where} alone")
        if flag := next((flag for flag in FLAGS if getattr(token, flag) != getattr(there, flag)), None):
            return Difference("other_tokens", f"{token.content!r} has {flag} {getattr(there, flag)} in {other.label}")
    return None


def _marked(token: Any) -> bool:
    """Whether an added token looks like one that nobody writes: <…>, [ … ]."""
    text = token.content.strip()
    return bool(token.special) or (text[:1] in "<[" and text[-1:] in ">]")


def parts_of_tokenizer_json(trained: Chat, other: Chat) -> list[str]:
    """Parts in which the rules of two tokenizers differ, as the library writes them now; the model's merges apart."""
    ours, theirs = _rules(trained), _rules(other)
    names = [name for name in BEHAVIOUR[:-1] if ours.get(name) != theirs.get(name)]
    for part in sorted({*ours.get("model", {}), *theirs.get("model", {})} - {"vocab"}):
        if ours.get("model", {}).get(part) != theirs.get("model", {}).get(part):
            names.append(f"model.{part}")
    return names


def _rules(chat: Chat) -> dict[str, Any]:
    core = getattr(chat.tokenizer, "backend_tokenizer", None)
    rules: dict[str, Any] = json.loads(core.to_str()) if core is not None else {}
    return rules


def merges_of(chat: Chat) -> list[str]:
    """The pairs of pieces that a tokenizer joins, in their order; none where it joins none."""
    merges = _rules(chat).get("model", {}).get("merges") or []
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def of_texts(trained: Chat, other: Chat, texts: Iterable[str]) -> Difference | None:
    """The first text that becomes other ids, or whose ids become another text."""
    kept = [text for text in dict.fromkeys(texts) if text]
    ours, theirs = _encoded(trained, kept), _encoded(other, kept)
    if place := _first(ours, theirs):
        shown = _at(trained, other, ours[place - 1], theirs[place - 1])
        return Difference("other_tokens", f"the text {kept[place - 1][:40]!r} becomes other tokens: {shown}")
    for text, ids in zip(kept, ours, strict=True):
        if (decoded := other.show(ids)) != (expected := trained.show(ids)):
            return Difference("other_tokens", f"{text[:40]!r} is written {_part(expected, decoded)} by {other.label}")
    return None


def of_templates(trained: Chat, other: Chat) -> str:
    """Where two templates' sources differ in what they do, in words; empty where comments and blanks are all."""
    assert trained.text is not None and other.text is not None
    if trained.text == other.text or _tree(trained.text) == _tree(other.text):
        return ""
    ours, theirs = trained.text.splitlines(), other.text.splitlines()
    line = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    there = theirs[line] if line < len(theirs) else ""
    here = ours[line] if line < len(ours) else ""
    return f"line {line + 1}: {_part(here, there)}"


def of_conversations(
    trained: Chat, other: Chat, conversations: Iterable[Conversation], whole: bool
) -> Difference | None:
    """The first conversation that is rendered to other ids.

    Args:
        whole: whether they end with an answer.
    """
    for name, messages, tools in conversations:
        ours, theirs = trained.ids(messages, tools, whole), other.ids(messages, tools, whole)
        if ours == theirs or (isinstance(ours, str) and isinstance(theirs, str)):
            continue
        if isinstance(ours, str) or isinstance(theirs, str):
            who, words = (trained.label, ours) if isinstance(ours, str) else (other.label, theirs)
            return Difference("other_template", f"the conversation {name!r}: {who} refuses it ({str(words)[:SHOWN]})")
        bos = other.tokenizer.bos_token_id
        doubled = bos is not None and theirs[:2] == [bos, bos] and ours[:2] != [bos, bos]
        same_text = trained.show(ours) == other.show(theirs)
        what = "double_bos" if doubled else "other_tokens" if same_text else "other_template"
        return Difference(what, f"the conversation {name!r}, {_at(trained, other, ours, theirs)}")
    return None


def _at(trained: Chat, other: Chat, ours: list[int], theirs: list[int]) -> str:
    """The place and both texts of the first difference of two rows of ids."""
    place = (_first(ours, theirs) or min(len(ours), len(theirs)) + 1) - 1
    start = max(0, place - AROUND)
    before = trained.show(ours[start:place])[-40:]
    here = trained.show(ours[place : place + AROUND])[:60]
    there = other.show(theirs[place : place + AROUND])[:60]
    if here == there:
        here, there = str(ours[place : place + 4]), str(theirs[place : place + 4])
    return f"token {place}: after {before!r} training has {here!r}, and {other.label} {there!r}"


def _first(first: Any, second: Any) -> int | None:
    """Place of the first difference, counted from 1; None where there is none within the shorter one."""
    pairs = enumerate(zip(first, second, strict=False), 1)
    return next((place for place, (left, right) in pairs if left != right), None)


def _texts(chat: Chat, ids: list[int]) -> list[str]:
    core = getattr(chat.tokenizer, "backend_tokenizer", None)
    if core is not None:
        texts: list[str] = core.decode_batch([[number] for number in ids], skip_special_tokens=False)
        return texts
    return [chat.show([number]) for number in ids]


def _encoded(chat: Chat, texts: list[str]) -> list[list[int]]:
    if not texts:
        return []
    encoded: Any = chat.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _part(ours: str, theirs: str) -> str:
    """Two texts from a little before their first difference on."""
    blocks = difflib.SequenceMatcher(None, ours[:2000], theirs[:2000], autojunk=False).get_matching_blocks()
    start = max(0, blocks[0].size - 20) if blocks and blocks[0].a == blocks[0].b == 0 else 0
    return f"{ours[start : start + SHOWN]!r} is {theirs[start : start + SHOWN]!r} there"


def _tree(text: str) -> str:
    """What a template does, without comments and blanks that change nothing; its text where Jinja cannot read it."""
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        return _spelled(environment.parse(GENERATION.sub("", text)))
    except TemplateSyntaxError:
        return text


def _spelled(node: Any) -> str:
    if isinstance(node, Node):
        fields = ",".join(f"{name}={_spelled(value)}" for name, value in node.iter_fields())
        return f"{type(node).__name__}({fields})"
    if isinstance(node, list):
        return f"[{','.join(map(_spelled, node))}]"
    return repr(node)
