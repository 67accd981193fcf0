"""Added tokens that are ordinary text: `<filename>` with SmolLM2's tokenizer, `<b>` with Gemma's.

A tokenizer takes its added tokens out of any text before it does anything else. Those that neither the template nor
the stop tokens use would only make such words unusable, so they are taken off that list: the words are encoded in
ordinary pieces, in training and on the server, as both read the tokenizer that is saved with the adapter. The ids
keep their place in the vocabulary and their spelling, so that nothing else changes. That works where pieces are put
together by merges (BPE), since no merge leads to these words; other models look whole words up.
"""

import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep.artifacts import atomic, filenames
from lockstep.prompts import tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = (
    "user|assistant|system|human|bot|chatbot|ai|gpt|model|developer|function|tools?|observation|ipython|environment"
)
# What opens or ends a turn, a role or a text in some family of models, whatever this model's template makes of it.
_TURN = re.compile(
    rf"(?:\w+_)?(?:im|turn|role|eot|eom|eod|eos|bos)(?:_\w+)?|(?:start|begin|end)_?of_?\w+|sop|eop|pad|unk|mask|sep|cls|{_ROLES}"
)
# In signs such as <|…|>, ［…］ or <｜…｜>, which are never words of a text, also these.
_SIGN = re.compile(
    rf"(?:start|begin|end)(?:_\w+)?|(?:{_ROLES})_\w+|(?:\w+_)?(?:{_ROLES}|header|prompt|message|channel)(?:_\w+)?"
    r"|return|call|constrain|python_tag"
)
_MARKS = re.compile(r"[|｜\[\]]")
_SURROUNDINGS = ("{}", "a{}b", " {} a", "{}{}", "\n{}\n", "<{}>", "你{}好", "1{}1", "({})")


def opens_or_ends_a_turn(token: str, special: bool, by_sign: bool = True) -> bool:
    """Whether a token, by its name, opens or ends a turn, a role or a text in some family of models.

    Args:
        special: whether the tokenizer calls it so: <s> begins a text in Llama 2, and strikes one out in Gemma's HTML.
        by_sign: whether names count that mean something only in signs such as <|…|> or [ … ].
    """
    name = re.sub(r"[\W_▁]+", "_", token.casefold()).strip("_")
    if _TURN.fullmatch(name) or (name == "s" and special):
        return True
    return by_sign and bool(_MARKS.search(token)) and (token.startswith(("[", "]")) or bool(_SIGN.fullmatch(name)))


def candidates(tokenizer: "PreTrainedTokenizerBase", used: Iterable[str], sources: Sequence[str]) -> list[str]:
    """The added tokens that nothing gives a meaning to.

    Args:
        used: tokens that have one: roles, stop tokens, those that prompts hold, those that the user allowed.
        sources: of the templates in question.
    """
    named = {str(token) for token in tokenizer.special_tokens_map.values()}
    meant = {*named, *used}
    return [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.content not in meant
        and token.content.strip().strip("▁")
        and not any(token.content in source for source in sources)
        and not opens_or_ends_a_turn(token.content, token.special)
    ]


def as_text(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> "PreTrainedTokenizerBase":
    """The tokenizer without these added tokens: it is saved, edited and read again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        _edit(folder, set(tokens))
        return tokenizer_folder.load(folder)


def without(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str]) -> tuple["PreTrainedTokenizerBase", list[str]]:
    """The tokenizer without those added tokens that can be text with nothing else changed, and which these are."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    able = list(tokens)
    if core is None or not able or json.loads(core.to_str())["model"]["type"] != "BPE":
        return tokenizer, []
    while able:
        edited = as_text(tokenizer, able)
        before, able = able, _stays_text(tokenizer, edited, able)
        if able == before:
            return edited, able
    return tokenizer, []


def _edit(folder: Path, tokens: set[str]) -> None:
    """Take added tokens off a saved tokenizer's lists; their ids stay in its vocabulary."""
    file = folder / filenames.TOKENIZER
    content = atomic.read_json(file)
    model = content["model"]
    # An added token gets the id that the vocabulary has for it, else the next free one: all of them get theirs here.
    for token in content["added_tokens"]:
        model["vocab"].setdefault(token["content"], token["id"])
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in tokens]
    # Converters derive merges from all pieces that there are, and so some that lead to these words.
    model["merges"] = [merge for merge in model["merges"] if "".join(_pair(merge)) not in tokens]
    atomic.write_json(file, content)
    file = folder / filenames.TOKENIZER_CONFIG
    config = atomic.read_json(file)
    if "added_tokens_decoder" in config:
        listed = config["added_tokens_decoder"].items()
        config["added_tokens_decoder"] = {id_: token for id_, token in listed if token["content"] not in tokens}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(config.get(key), list):
            config[key] = [token for token in config[key] if _spelling(token) not in tokens]
    atomic.write_json(file, config)


def _pair(merge: Any) -> list[str]:
    return merge if isinstance(merge, list) else merge.split(" ", 1)


def _spelling(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _stays_text(
    before: "PreTrainedTokenizerBase", after: "PreTrainedTokenizerBase", tokens: Sequence[str]
) -> list[str]:
    """The tokens that `after` encodes in pieces wherever they stand; none where it differs in anything else."""
    others = [token for token in before.added_tokens_decoder.values() if token.content not in tokens]
    texts = [*tokenizer_folder.PROBES, *(f"a{token.content} b" for token in others)]
    if (
        before.get_vocab() != after.get_vocab()
        or sorted(map(repr, others)) != sorted(map(repr, after.added_tokens_decoder.values()))
        or _encode(before, texts) != _encode(after, texts)
    ):
        return []
    able = []
    for token in tokens:
        own = before.convert_tokens_to_ids(token)
        encoded = _encode(after, [surroundings.replace("{}", token) for surroundings in _SURROUNDINGS])
        if before.decode([own]) == after.decode([own]) and not any(own in ids for ids in encoded):
            able.append(token)
    return able


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return encoded
