"""The gate's look at the other protocols: what they are asked becomes the prompts of training, too."""

from typing import Any

from lockstep.serving.gate_findings import Findings
from lockstep.serving.messages_route import MESSAGES
from lockstep.serving.probe import Server
from lockstep.serving.responses_route import RESPONSES

CONVERSATIONS = 6  # golden ones, the shortest, that are sent through each


def check(server: Server, name: str, agreed: dict[str, Any], longest: int, findings: Findings) -> None:
    """Send golden conversations as requests of both protocols, and compare the ids that the model is given.

    Args:
        name: that clients send.
        agreed: the contract.
        longest: tokens of prompt and answer that the server takes.
    """
    fitting = [
        conversation for conversation in agreed["conversations"]
        if len(conversation["prompt_ids"]) < longest and _is_plain(conversation)
    ]  # fmt: skip
    sample = sorted(fitting, key=lambda conversation: len(conversation["prompt_ids"]))[:CONVERSATIONS]

    def is_same(question: tuple[str, dict[str, Any]]) -> bool:
        route, conversation = question
        answer = server.ask(route, _request(route, conversation["messages"]) | {"model": name, "temperature": 0})
        return bool(answer["prompt_token_ids"] == conversation["prompt_ids"])

    questions = [(route, conversation) for route in (RESPONSES, MESSAGES) for conversation in sample]
    sameness = findings.ask_all("prompts", is_same, questions)
    wrong = [route for (route, _), same in zip(questions, sameness, strict=True) if not same]
    findings.report["other_protocols"] = len(questions)
    if wrong:
        findings.refuse(
            "other_template",
            f"{len(wrong)} golden conversations become other tokens at {wrong[0]} than in training",
        )


def _is_plain(conversation: dict[str, Any]) -> bool:
    """Whether a conversation holds texts only, none of them empty, and a system message only at its beginning."""
    messages = conversation["messages"]
    texts = [message.get("content") for message in messages if message.keys() == {"role", "content"}]
    plain = len(texts) == len(messages) and all(isinstance(text, str) and text for text in texts)
    roles = [message["role"] for message in messages]
    return (
        plain
        and "tools" not in conversation
        and "system" not in roles[1:]
        and {*roles} <= {"system", "user", "assistant"}
    )


def _request(route: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """A conversation as these protocols' own clients write it."""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    rest = messages[1:] if system is not None else messages
    if route == MESSAGES:
        blocks = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in rest]
        return {"system": system, "messages": blocks, "max_tokens": 1}
    kinds = {"assistant": "output_text"}
    items = [
        {"type": "message", "role": m["role"],
         "content": [{"type": kinds.get(m["role"], "input_text"), "text": m["content"]}]}
        for m in rest
    ]  # fmt: skip
    return {"instructions": system, "input": items, "max_output_tokens": 1}
