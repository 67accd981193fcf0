"""Does it stop? The end tokens at which a server will end an answer, against those of the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.artifacts import filenames
from lockstep.prompts.text_tokens import opens_or_ends_a_turn
from lockstep.verification import chats
from lockstep.verification.chats import Chat
from lockstep.verification.conversations import Conversation
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof


def of_folder(trained: Chat, trained_folders: Sequence[Path], other: Chat, folder: Path) -> Proof:
    """Hold the end tokens of a folder against those of the training.

    A server stops at those of generation_config.json, or of config.json where there is none, and at the tokenizer's.

    Args:
        trained_folders: base and adapter, as far as they are given.
    """
    end = trained.end_of_turn
    stops, known = ends_of(folder, other), {number for each in trained_folders for number in ends_of(each, None)}
    known |= {number for number in (trained.tokenizer.eos_token_id, end) if isinstance(number, int)}
    figures: dict[str, Any] = {"end_of_turn": end, "stops": sorted(stops), "stops_of_training": sorted(known)}
    if end is None:
        text = f"no end of turn is known: {trained.problem}"
        return Proof(UNKNOWN, figures, None, text, "give --template, or an adapter that holds it")
    name = trained.show([end])
    if end not in stops:
        shown = ", ".join(map(other.show, ([number] for number in sorted(stops)))) or "none"
        text = f"training ends an answer with {name} ({end}), and {other.label} stops at {shown} only"
        hint = f"add {end} to eos_token_id in generation_config.json and config.json"
        return Proof(FAILED, figures, "lost_end_token", text, hint)
    extra = [number for number in sorted(stops - known) if not _ends(other, number)]
    if extra:
        text = f"{other.label} stops at {other.show([extra[0]])!r} ({extra[0]}) too, at which training went on"
        return Proof(FAILED, figures, "extra_end_token", text, f"take {extra[0]} out of eos_token_id")
    return Proof(PASSED, figures, None, f"an answer ends with {name} ({end}), as in training", _hint(folder, end))


def of_rows(trained: Chat, rows: Sequence[Conversation]) -> Proof | None:
    """Whether rows of the training end with a token at which a model can stop; None where that cannot be rendered."""
    end = trained.end_of_turn
    if end is None or not rows:
        return None
    without = None
    for row in rows:
        ids = trained.ids(row.messages, row.tools, whole=True)
        if isinstance(ids, list) and row.messages[-1]["role"] == "assistant" and end not in ids[-4:]:
            without = row
            break
    if without is None:
        return Proof(PASSED, {"rows_with_end": len(rows)}, None, f"all {len(rows)} rows end with {trained.show([end])}")
    text = f"{without.name} does not end with {trained.show([end])}: a model trained so does not learn to stop"
    return Proof(FAILED, {"rows_with_end": 0}, "lost_end_token", text, "train with a template that ends every answer")


def ends_of(folder: Path, chat: Chat | None) -> set[int]:
    """The ids at which a server of a folder ends an answer."""
    generation, config = (
        chats.stop_ids(folder, filenames.GENERATION_CONFIG), chats.stop_ids(folder, filenames.CONFIG)
    )  # fmt: skip
    own = chat.tokenizer.eos_token_id if chat else None
    return {*(generation or config), *([own] if isinstance(own, int) else [])}


def _ends(chat: Chat, number: int) -> bool:
    """Whether a token is one that ends turns or texts in some family, and that no answer holds."""
    token = chat.tokenizer.added_tokens_decoder.get(number)
    return token is not None and token.special and opens_or_ends_a_turn(token.content, token.special)


def _hint(folder: Path, end: int) -> str:
    generation = chats.stop_ids(folder, filenames.GENERATION_CONFIG) or chats.stop_ids(folder, filenames.CONFIG)
    if generation and end not in generation:
        return f"add {end} to eos_token_id in generation_config.json: transformers stops at nothing else"
    return ""
