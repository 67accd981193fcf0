"""The gate's look at the whole vocabulary: ids become the texts of training at the server, and texts its ids."""

from typing import Any

from lockstep.prompts.template import Template
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server

TOGETHER = 512  # ids in a request


def check(server: Server, name: str, chat: Template, vocabulary: int, findings: Findings) -> None:
    """Send every id to be made text, and that text to be made ids, and compare with the tokenizer of training.

    Args:
        name: that clients send.
        chat: with the tokenizer of training.
        vocabulary: how many token ids the model has.
    """
    ids = range(min(len(chat.tokenizer), vocabulary))
    chunks = [list(ids[start : start + TOGETHER]) for start in range(0, len(ids), TOGETHER)]

    def difference(chunk: list[int]) -> str:
        expected = chat.tokenizer.decode(chunk)
        served = server.ask("/detokenize", {"model": name, "tokens": chunk})["prompt"]
        if served != expected:
            return f"ids from {chunk[0]} to {chunk[-1]} become another text"
        body: dict[str, Any] = {"model": name, "prompt": expected, "add_special_tokens": False}
        if server.ask("/tokenize", body)["tokens"] != chat.encode([expected])[0]:
            return f"the text of ids from {chunk[0]} to {chunk[-1]} becomes other ids"
        return ""

    differences = [words for words in findings.ask_all("prompts", difference, chunks) if words]
    findings.report |= {"vocabulary": len(ids), "vocabulary_mismatches": len(differences)}
    if differences:
        findings.refuse("other_tokens", f"the server has another tokenizer than training: {differences[0]}")
