"""The gate's first two proofs: prompts become the tokens of training, and answers end at its stop tokens."""

import copy
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.prompts import contract, template, vocabulary
from lockstep.serving import request_messages
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server

Fault = tuple[str, str]  # in a word, and the reason

ORDINARY = 64  # tokens of each kind that must not end an answer: enough to tell, at one short request each


def foresee(folder: Path, adapter: Path) -> dict[str, Any]:
    """What both proofs will find, as far as files tell it.

    Args:
        folder: with the tokenizer and template that are served.
        adapter: with the contract.

    Returns:
        fields of the report, `reasons` and `named` among them.
    """
    agreed = atomic.read_json(adapter / filenames.CONTRACT)
    chat = template_of(folder)
    conversations = agreed["conversations"]
    wrong = [c["name"] for c in conversations if chat.prompt_ids(c["messages"], c.get("tools")) != c["prompt_ids"]]
    if wrong:
        faults = [_other_tokens(folder, agreed, wrong)]
    else:
        chats = {folder: chat} | ({adapter: template_of(adapter)} if adapter != folder else {})
        faults = _other_ends(folder, agreed, chat) + _other_texts(chats, agreed)
    return {
        "prompts": len(conversations),
        "token_mismatches": len(wrong),
        "reasons": [reason for _, reason in faults],
        "named": faults[0][0] if faults else None,
    }


def check_prompts(server: Server, name: str, folder: Path, agreed: dict[str, Any], findings: Findings) -> None:
    """Proof 1: the server tokenizes the golden conversations to the ids that training rendered.

    Args:
        name: that clients send.
        agreed: the contract.
    """

    def is_same(conversation: dict[str, Any]) -> bool:
        body: dict[str, Any] = {key: conversation[key] for key in ("messages", "tools") if key in conversation}
        return bool(server.ask("/tokenize", body | {"model": name})["tokens"] == conversation["prompt_ids"])

    conversations = agreed["conversations"]
    sameness = zip(conversations, findings.ask_all("prompts", is_same, conversations), strict=True)
    wrong = [conversation["name"] for conversation, same in sameness if not same]
    findings.report |= {"prompts": len(conversations), "token_mismatches": len(wrong)}
    if len(conversations) < contract.FEWEST:
        findings.refuse(
            "cut_contract", f"{filenames.CONTRACT} holds only {len(conversations)} conversations: it was cut"
        )
    if wrong:
        findings.refuse(*_other_tokens(folder, agreed, wrong))


def check_row_prompts(server: Server, name: str, chat: template.Template, rows: list[Any], findings: Findings) -> None:
    """Proof 1 once more, on held-out rows: their messages become the ids that the rows begin with.

    Rows whose prompt was cut in training are left out.

    Args:
        chat: the tokenizer and template of training.
        rows: of the reference.
    """
    asked = [
        row
        for row in rows
        if row.get("messages") and chat.prompt_ids(row["messages"], row["tools"]) == row["input_ids"][: row["start"]]
    ]

    def is_same(row: dict[str, Any]) -> bool:
        messages = copy.deepcopy(row["messages"])
        request_messages.tidy(messages, len(messages))  # the form in which the door passes them on
        body = {"model": name, "messages": messages} | ({"tools": row["tools"]} if row["tools"] else {})
        return bool(server.ask("/tokenize", body)["tokens"] == row["input_ids"][: row["start"]])

    wrong = [
        row["row"] for row, same in zip(asked, findings.ask_all("prompts", is_same, asked), strict=True) if not same
    ]
    findings.report |= {"row_prompts": len(asked), "row_prompt_mismatches": len(wrong)}
    if wrong:
        findings.refuse(
            "other_template",
            f"{len(wrong)} of {len(asked)} held-out rows become other tokens than in training (first {wrong[0]})",
        )


def template_of(folder: Path) -> template.Template:
    """The tokenizer and chat template of a folder."""
    return template.load(folder, (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))


def check_stops(server: Server, name: str, agreed: dict[str, Any], ordinary: list[int], findings: Findings) -> None:
    """Proof 2: made to give a stop token, the server ends the answer there, and it goes on after ordinary tokens.

    Args:
        ordinary: from `ordinary_tokens`.
    """
    prompt = agreed["conversations"][0]["prompt_ids"]

    def ends_at(token: int) -> bool:
        return bool(server.complete(name, prompt, max_tokens=2, allowed_token_ids=[token])["finish_reason"] == "stop")

    tokens = [*agreed["stop_ids"], *ordinary]
    ended_at = dict(zip(tokens, findings.ask_all("stops", ends_at, tokens), strict=True))
    for token in agreed["stop_ids"]:
        if not ended_at[token]:
            findings.refuse(
                "lost_end_token",
                f"stop token {token} does not end an answer: special tokens, or the eos_token_id of "
                f"{filenames.GENERATION_CONFIG}, differ",
            )
    findings.report["ordinary_tokens"] = len(ordinary)
    for token in ordinary:
        if ended_at[token]:
            findings.refuse(
                "extra_end_token",
                f"token {token} ends an answer, which in training went on after it: another eos_token_id",
            )


def ordinary_tokens(folder: Path, agreed: dict[str, Any], rows: list[Any], vocabulary: int) -> list[int]:
    """Tokens after which an answer goes on.

    They are of two kinds: those that the tokenizer adds and does not call special, such as <tool_call>, which another
    configuration may take for ends, and the most frequent ones of held-out answers.

    Args:
        rows: of the reference.
    """
    file = folder / filenames.TOKENIZER
    added = atomic.read_json(file)["added_tokens"] if file.exists() else []
    frequency = Counter(token for row in rows for token in row["input_ids"][row["start"] :])
    kinds = (
        [token["id"] for token in added if not token["special"]],
        [token for token, _ in frequency.most_common()],
    )
    tokens: list[int] = []
    for kind in kinds:
        tokens += [token for token in kind if token not in agreed["stop_ids"] and token < vocabulary][:ORDINARY]
    return list(dict.fromkeys(tokens))


def _other_tokens(folder: Path, agreed: dict[str, Any], wrong: list[str]) -> Fault:
    """Where the conversations of these names become other tokens."""
    file = folder / filenames.CHAT_TEMPLATE
    text = file.read_bytes() if file.exists() else b""
    same_text = hashlib.sha256(text).hexdigest() == agreed["template_sha256"]
    return (
        "other_tokens" if same_text else "other_template",
        f"{len(wrong)} of {len(agreed['conversations'])} golden conversations become other tokens than in training "
        f"(first {wrong[0]!r}): the {'tokenizer' if same_text else 'chat template'} differs",
    )


def _other_texts(chats: dict[Path, template.Template], agreed: dict[str, Any]) -> list[Fault]:
    """Where a template or a vocabulary is another one, though the conversations come out the same.

    Args:
        chats: of the folder that is served, and of the adapter's.
    """
    faults = []
    for folder, chat in chats.items():
        label = paths.label(folder)
        if hashlib.sha256(chat.text.encode()).hexdigest() != agreed["template_sha256"]:
            faults.append(("other_template", f"{label}: the chat template is another text than in training"))
        if difference := vocabulary.difference(agreed.get("vocabulary"), chat):
            faults.append(("other_tokens", f"{label}: the tokenizer differs: {difference}"))
    return faults


def _other_ends(folder: Path, agreed: dict[str, Any], chat: template.Template) -> list[Fault]:
    """Where special tokens are others than in training, or answers would end at ordinary ones, or too late."""
    faults = [
        (
            "lost_end_token" if token in agreed["stop_ids"] else "other_tokens",
            f"the tokenizer's {name} token is {chat.special_ids[name]}, and was {token} in training",
        )
        for name, token in agreed["special_ids"].items()
        if chat.special_ids[name] != token
    ]
    file = folder / filenames.GENERATION_CONFIG
    file = file if file.exists() else folder / filenames.CONFIG  # as vLLM does
    ends = atomic.read_json(file).get("eos_token_id") if file.exists() else None
    added = chat.tokenizer.added_tokens_decoder
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    for token in ends:
        if token not in agreed["stop_ids"] and not (token in added and added[token].special):
            faults.append(("extra_end_token", f"{file.name} ends answers at token {token}, which is an ordinary one"))
    for token in agreed["stop_ids"] if ends else []:
        if token not in (*ends, chat.special_ids["eos"]):  # vLLM ends answers at the tokenizer's own end token, too
            faults.append(("lost_end_token", f"{file.name} does not end answers at token {token}, as training did"))
    return faults
