"""A tokenizer's whole vocabulary, in a form that can be compared: every id's token, and the text that it becomes.

Golden conversations use some hundred of its tokens. Two others that change places would go unnoticed.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lockstep.prompts.template import Template


def digests(chat: "Template") -> dict[str, Any]:
    """What the contract says of the vocabulary.

    Returns:
        `size`: ids, those of added tokens among them; `tokens_sha256`: of every id's token; `texts_sha256`: of the text
        that each id by itself becomes.
    """
    ids = range(len(chat.tokenizer))
    return {
        "size": len(ids),
        "tokens_sha256": _sha256(chat.tokenizer.convert_ids_to_tokens(list(ids))),
        "texts_sha256": _sha256(chat.decode([[token] for token in ids])),
    }


def difference(agreed: dict[str, Any] | None, chat: "Template") -> str:
    """In what a tokenizer differs from the one of a contract; empty where it does not, or the contract is older.

    Args:
        agreed: what `digests` returned at training.
    """
    if agreed is None:
        return ""
    now = digests(chat)
    if now["size"] != agreed["size"]:
        return f"it has {now['size']} tokens, and had {agreed['size']} in training"
    if now["tokens_sha256"] != agreed["tokens_sha256"]:
        return "tokens have other ids than in training"
    if now["texts_sha256"] != agreed["texts_sha256"]:
        return "ids become other texts than in training"
    return ""


def _sha256(words: Iterable[str | None]) -> str:
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()
