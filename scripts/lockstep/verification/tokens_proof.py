"""Are these the tokens of the training? A folder's tokenizer and template against those that the training used."""

from collections.abc import Sequence
from typing import Any

from lockstep.verification import conversations, token_differences
from lockstep.verification.chats import Chat
from lockstep.verification.conversations import Conversation
from lockstep.verification.token_differences import Difference
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

COPY = "copy tokenizer files and chat_template.jinja from the adapter, or from the base if it holds none"
GIVE = "give --template, or an adapter that holds it"
NEXT = {
    "other_template": COPY,
    "other_tokens": COPY,
    "double_bos": "let either the template write the bos token or the tokenizer add it: set add_bos_token to false",
}


def of_folder(trained: Chat, other: Chat, rows: Sequence[Conversation]) -> Proof:
    """Hold a folder's tokenizer and template against the training's.

    Args:
        rows: of the training file; none where none was given.
    """
    figures: dict[str, Any] = {"vocabulary": len(trained.tokenizer), "rows": len(rows), "conversations": 0}
    difference = token_differences.of_vocabularies(trained, other) or _of_rules(trained, other, rows, figures)
    if difference:
        return _failed(difference, figures)
    if trained.text is None and other.text is None:
        return Proof(PASSED, figures, None, f"the tokenizer of {other.label} is the training's; no chat template")
    if trained.text is None:
        text = f"the tokenizer of {other.label} is the training's; what template the training used is not known"
        return Proof(UNKNOWN, figures, None, text, GIVE)
    if other.text is None:
        text = f"{other.label} holds no chat template, and the training used one"
        return _failed(Difference("other_template", text), figures)
    return _of_templates(trained, other, rows, figures)


def of_adapter(trained: Chat, base: Chat) -> Proof:
    """Whether the tokenizer that an adapter brings numbers the base's tokens as the base does.

    Its template may be another one: a server that is given the adapter beside the base would use the base's.
    """
    figures = {"vocabulary": len(trained.tokenizer)}
    if difference := token_differences.of_vocabularies(base, trained):
        return Proof(FAILED, figures, difference.what, difference.text, "give the base that the adapter was trained on")
    hint = ""
    other = trained.text is not None and base.text is not None and token_differences.of_templates(trained, base)
    if other or (trained.text is not None and base.text is None):
        hint = f"the adapter's chat template is not that of {base.label}: served beside the base, it must be given"
    return Proof(PASSED, figures, None, f"the adapter's tokenizer is that of {base.label}", hint)


def _of_rules(trained: Chat, other: Chat, rows: Sequence[Conversation], figures: dict[str, Any]) -> Difference | None:
    """The first difference in how texts become ids: in the tokenizer's rules, and on texts of all kinds."""
    parts = token_differences.parts_of_tokenizer_json(trained, other)
    figures["differing_rules"] = parts
    spoken = [*conversations.golden(), *rows]
    texts = [str(message.get("content") or "") for each in spoken for message in each.messages]
    if difference := token_differences.of_texts(trained, other, texts):
        return difference
    if "model.merges" in parts:
        return Difference("other_tokens", f"{other.label} joins pieces in another order: model.merges differs")
    if parts:  # another spelling of the same rules, perhaps: every token's own text tells more than some sentences
        every = trained.tokenizer.convert_ids_to_tokens(list(range(len(trained.tokenizer))))
        if difference := token_differences.of_texts(trained, other, map(str, every)):
            return difference
    if trained.adds_bos != other.adds_bos:
        adds = "adds" if other.adds_bos else "does not add"
        what = "double_bos" if other.adds_bos and _writes_bos(trained) else "other_tokens"
        return Difference(what, f"{other.label} {adds} the bos token to a text, other than in training")
    return None


def _writes_bos(chat: Chat) -> bool:
    """Whether a template begins with the bos token."""
    if chat.template is None:
        return False
    ids = chat.ids([{"role": "user", "content": "a"}], None, whole=False)
    return isinstance(ids, list) and ids[:1] == [chat.tokenizer.bos_token_id]


def _of_templates(trained: Chat, other: Chat, rows: Sequence[Conversation], figures: dict[str, Any]) -> Proof:
    changed = token_differences.of_templates(trained, other)
    figures["template_is_equal"] = not changed
    if trained.template is None or other.template is None:
        problem = trained.problem or other.problem
        if not changed:
            return Proof(PASSED, figures, None, f"tokenizer and template of {other.label} are the training's")
        return Proof(UNKNOWN, figures, None, f"the templates differ, {changed}; {problem}", COPY)
    golden = list(conversations.golden())
    figures["conversations"] = len(golden)
    plain, tools = [each for each in golden if not each.tools], [each for each in golden if each.tools]
    difference = token_differences.of_conversations(trained, other, plain, whole=False)
    difference = difference or token_differences.of_conversations(trained, other, rows, whole=True)
    if difference:
        return _failed(difference, figures)
    if difference := token_differences.of_conversations(trained, other, tools, whole=False):
        if not trained.assumed:
            return _failed(difference, figures)
        text = "the templates differ only where tools are used, and whether training used the base's is not known: "
        return Proof(UNKNOWN, figures, difference.what, text + difference.text, GIVE)
    if changed:
        text = (
            f"all {len(golden) + len(rows)} conversations are rendered alike, but the template of {other.label} does "
            f"something else, {changed}"
        )
        return Proof(UNKNOWN, figures, "other_template", text, COPY)
    on_rows = f" and {len(rows)} rows" if rows else ""
    text = f"{len(trained.tokenizer):,} tokens, the template, {len(golden)} conversations{on_rows}: all the training's"
    return Proof(PASSED, figures, None, text)


def _failed(difference: Difference, figures: dict[str, Any]) -> Proof:
    return Proof(FAILED, figures, difference.what, difference.text, NEXT[difference.what])
