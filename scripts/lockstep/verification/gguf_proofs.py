"""Tokens, end tokens and sampling of a GGUF file's head, against those of the training.

llama.cpp's servers take all three from the head: the tokenizer beside it counts for nothing there.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lockstep import paths
from lockstep.verification import conversations, sampling_proof, token_differences
from lockstep.verification.chats import Chat
from lockstep.verification.conversations import Conversation
from lockstep.verification.gguf_file import KNOWN_ENDS, TOKENIZER, GgufFile
from lockstep.verification.token_differences import Difference
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

AGAIN = "convert again from the merged folder, with the training's tokenizer and template in it"


def tokens(trained: Chat, file: GgufFile, rows: Sequence[Conversation]) -> Proof:
    """Whether the head holds the training's vocabulary, merges and template, and adds no bos token."""
    label = paths.label(file.path)
    figures: dict[str, Any] = {"vocabulary": len(file.tokens), "rows": len(rows)}
    difference = _vocabulary(trained, file, label) or _bos(trained, file, label)
    if difference is None and trained.text is not None:
        difference, changed = _template(trained, file, rows, label)
        if difference is None and changed:
            text = f"all conversations are rendered alike, but the template of {label} does something else, {changed}"
            return Proof(UNKNOWN, figures, "other_template", text, AGAIN)
    if difference:
        return Proof(FAILED, figures, difference.what, difference.text, AGAIN)
    if trained.text is None:
        return Proof(
            UNKNOWN, figures, None, f"what template the training used is not known: {label}", "give --template"
        )
    return Proof(PASSED, figures, None, f"{len(file.tokens):,} tokens and the template of {label} are the training's")


def stops(trained: Chat, file: GgufFile) -> Proof:
    """Whether an answer ends at the training's end token: by the head, or by a spelling that llama.cpp knows."""
    label, end = paths.label(file.path), trained.end_of_turn
    figures = {"end_of_turn": end, "stops": sorted(file.ends)}
    if end is None:
        return Proof(UNKNOWN, figures, None, f"no end of turn is known: {trained.problem}", "give --template")
    name = trained.show([end])
    if end in file.ends:
        return Proof(PASSED, figures, None, f"an answer ends with {name} ({end}), as in training")
    if name in KNOWN_ENDS:
        hint = f"set {TOKENIZER}eot_token_id to {end}: other servers than llama.cpp's go by the head alone"
        return Proof(PASSED, figures, None, f"an answer ends with {name}, whose spelling llama.cpp knows", hint)
    text = f"training ends an answer with {name} ({end}), and {label} names {sorted(file.ends)} only"
    return Proof(FAILED, figures, "lost_end_token", text, f"set {TOKENIZER}eot_token_id to {end}")


def sampling(asked: dict[str, Any], file: GgufFile) -> Proof:
    """Whether the head asks for sampling that was not asked for."""
    proof = sampling_proof.of_settings(asked, file.sampling, paths.label(file.path))
    hint = "take general.sampling.* out of the file's head" if proof.status == FAILED else ""
    return replace(proof, next=hint)


def _vocabulary(trained: Chat, file: GgufFile, label: str) -> Difference | None:
    theirs = file.tokens
    ours = trained.tokenizer.convert_ids_to_tokens(list(range(len(trained.tokenizer))))
    if len(theirs) < len(ours):
        return Difference("other_tokens", f"{label} has {len(theirs)} tokens for {len(ours)}")
    for number, (token, there) in enumerate(zip(ours, theirs, strict=False)):
        if token != there and not (number in trained.tokenizer.added_tokens_decoder and token.strip() == there.strip()):
            return Difference("other_tokens", f"id {number} is {token!r} in training, and {there!r} in {label}")
    merges = file.value(f"{TOKENIZER}merges")
    own = token_differences.merges_of(trained)
    if merges and own and merges != own:
        place = next((n for n, (a, b) in enumerate(zip(own, merges, strict=False)) if a != b), len(own))
        return Difference("other_tokens", f"{label} joins pieces in another order, from merge {place} on")
    return None


def _bos(trained: Chat, file: GgufFile, label: str) -> Difference | None:
    """The head's flag decides in chats, too: llama.cpp cuts a bos token that the template writes, and adds its own."""
    adds = file.value(f"{TOKENIZER}add_bos_token")
    ids = trained.ids([{"role": "user", "content": "a"}], None, whole=False) if trained.template else "none"
    bos = trained.tokenizer.bos_token_id
    if adds is None or isinstance(ids, str) or bos is None:
        return None
    begins = ids[:1] == [bos]
    if adds and not begins:
        return Difference("other_tokens", f"{label} puts {trained.show([bos])} before every prompt, and training none")
    if ids[:2] == [bos, bos]:
        return Difference("double_bos", f"the template of {label} begins with {trained.show([bos])} twice")
    return None


def _template(trained: Chat, file: GgufFile, rows: Sequence[Conversation], label: str) -> tuple[Difference | None, str]:
    from lockstep.errors import UserError
    from lockstep.prompts.template import Template
    from lockstep.verification import chats

    text = file.template
    if text is None:
        return Difference("other_template", f"{label} holds no chat template, and the training used one"), ""
    tokenizer = chats.copy_of(trained.tokenizer)
    try:
        other = Chat(label, tokenizer, text, Template(tokenizer, text))
    except UserError as error:
        return Difference("other_template", f"the template of {label}: {error}"), ""
    changed = token_differences.of_templates(trained, other)
    if trained.template is None:
        return None, changed
    difference = token_differences.of_conversations(trained, other, conversations.golden(), whole=False)
    difference = difference or token_differences.of_conversations(trained, other, rows, whole=True)
    return difference, changed
