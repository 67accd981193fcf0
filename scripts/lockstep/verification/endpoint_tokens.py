"""Whether an endpoint makes the prompts of training: the token ids, or their number, of conversations sent to it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lockstep.prompts import template, template_source
from lockstep.verification import endpoint_ollama, plain_tokenizer
from lockstep.verification.endpoint_client import LLAMA_CPP, OLLAMA, Endpoint, NotOffered
from lockstep.verification.expectation import Expectation
from lockstep.verification.verdict import FAILED, PASSED, UNKNOWN, Proof

ROWS = 8  # rows whose messages are sent beside the golden conversations
AROUND = 24  # characters shown before and after the first difference
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Conversation = dict[str, Any]  # of the contract: name, messages, tools, prompt_ids


@dataclass(frozen=True)
class Served:
    """What an endpoint makes of a conversation.

    Attributes:
        ids: the prompt; None where the endpoint does not show it.
        count: how many tokens a chat request counts; None where it says nothing.
        refusal: why it takes no such conversation; empty where it does.
    """

    ids: list[int] | None
    count: int | None
    refusal: str = ""

    def differs(self, expected: Sequence[int]) -> bool:
        """Whether it is another prompt, by all that is known of it."""
        if self.refusal:
            return False
        other_ids = self.ids is not None and self.ids != list(expected)
        return other_ids or (self.count is not None and self.count != len(expected))


def with_rows(expectation: Expectation) -> Expectation:
    """The same, with messages of rows beside the golden conversations: a template may differ for what only rows hold.

    Rows that the template of training renders otherwise are left out: their prompt was cut.
    """
    own = template_source.of_folder(expectation.tokenizer) if expectation.tokenizer else None
    rows = (expectation.reference or {}).get("rows", ())
    if own is None or not rows:
        return expectation
    conversations = [
        {
            "name": f"row {row['row']}", "messages": row["messages"], "prompt_ids": row["input_ids"][: row["start"]],
            **({"tools": row["tools"]} if row["tools"] else {}),
        }
        for row in rows[:: -(-len(rows) // ROWS)]
        if row.get("messages")
    ]  # fmt: skip
    sound = [conversation for conversation in conversations if _rendered(expectation, conversation, own)]
    contract = expectation.contract
    return replace(expectation, contract=contract | {"conversations": [*contract["conversations"], *sound]})


def _rendered(expectation: Expectation, conversation: Conversation, text: str) -> bool:
    """Whether a template makes the ids of a conversation."""
    served = {conversation["name"]: Served(conversation["prompt_ids"], None)}
    alone = replace(expectation, contract=expectation.contract | {"conversations": [conversation]})
    return _makes(alone, served, text)


def ask(endpoint: Endpoint, contract: dict[str, Any], longest: int | None) -> dict[str, Served]:
    """What the endpoint makes of the conversations, by name."""
    conversations = [
        conversation
        for conversation in contract["conversations"]
        if longest is None or len(conversation["prompt_ids"]) < longest
    ]
    show = next((show for show in (_tokenized, _applied) if _works(show, endpoint, conversations[0])), None)
    # The first ones tell how slow it is.
    first = [_served(endpoint, conversation, show) for conversation in conversations[:2]]
    more = endpoint.affordable(conversations[2:])
    served = [*first, *endpoint.ask_all(lambda conversation: _served(endpoint, conversation, show), more)]
    conversations = [*conversations[:2], *more]
    return {conversation["name"]: what for conversation, what in zip(conversations, served, strict=True)}


Show = Callable[[Endpoint, Conversation], list[int]]


def _works(show: Show, endpoint: Endpoint, conversation: Conversation) -> bool:
    try:
        return bool(show(endpoint, conversation))
    except (NotOffered, LookupError, TypeError):  # another engine's route of that name answers in another form
        return False


def _served(endpoint: Endpoint, conversation: Conversation, show: Show | None) -> Served:
    """What a chat request makes of it, and what the engine shows of its ids."""
    tools = conversation.get("tools")
    fields = {"tool_choice": "none"} if tools and endpoint.card.get("max_model_len") else {}
    try:
        answer = endpoint.chat(conversation["messages"], tools, max_tokens=1, return_token_ids=True, **fields)
    except NotOffered:
        try:  # a field that this engine does not take, such as the last
            answer = endpoint.chat(conversation["messages"], tools, max_tokens=1)
        except NotOffered as error:
            return Served(None, None, str(error))
    usage = answer.get("usage")
    # Ollama counts nothing of a prompt that it still has.
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    ids = answer.get("prompt_token_ids")
    if not isinstance(ids, list) and show:
        try:
            ids = show(endpoint, conversation)
        except (NotOffered, LookupError, TypeError):
            ids = None
    return Served(ids if isinstance(ids, list) else None, count if isinstance(count, int) and count else None)


def _tokenized(endpoint: Endpoint, conversation: Conversation) -> list[int]:
    """By vLLM's /tokenize, which renders messages itself."""
    body = {"model": endpoint.model, "messages": conversation["messages"]}
    if tools := conversation.get("tools"):
        body["tools"] = tools
    return [int(token) for token in endpoint.ask("/tokenize", body)["tokens"]]


def _applied(endpoint: Endpoint, conversation: Conversation) -> list[int]:
    """By llama.cpp's /apply-template, and /tokenize as its chat route does it: with its own BOS."""
    body = {"messages": conversation["messages"]}
    if tools := conversation.get("tools"):
        body["tools"] = tools
    text = endpoint.ask("/apply-template", body)["prompt"]
    return [
        int(token)
        for token in endpoint.ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    ]


def proof(endpoint: Endpoint, expectation: Expectation, served: dict[str, Served]) -> Proof:
    """Whether the endpoint makes the prompts of training, and by which template it makes them otherwise."""
    conversations = {conversation["name"]: conversation for conversation in expectation.contract["conversations"]}
    wrong = [name for name, what in served.items() if what.differs(conversations[name]["prompt_ids"])]
    answered = [what for what in served.values() if not what.refusal]
    shown = sum(what.ids is not None for what in answered)
    counted = sum(what.count is not None for what in answered)
    figures = {
        "endpoint_prompts": len(answered), "endpoint_prompts_with_ids": shown, "endpoint_prompts_counted": counted,
        "endpoint_prompt_mismatches": len(wrong), "endpoint_prompts_refused": len(served) - len(answered),
    }  # fmt: skip
    if wrong:
        return _difference(endpoint, expectation, served, wrong, figures)
    if not answered or not (shown or counted):
        return Proof(
            UNKNOWN, figures, None, "the endpoint shows neither the tokens of prompts nor their number",
            "ask an engine that tells usage.prompt_tokens, or serve the model with vLLM",
        )  # fmt: skip
    if shown == len(answered):
        return Proof(PASSED, figures, None, f"{shown} conversations become the token ids of training")
    return Proof(
        UNKNOWN, figures, None,
        f"{counted} conversations become as many tokens as in training; which ones, the endpoint does not show",
        "an engine that shows ids (vLLM's or llama.cpp's /tokenize) tells; verify at its own address, behind any door",
    )  # fmt: skip


def _difference(
    endpoint: Endpoint, expectation: Expectation, served: dict[str, Served], wrong: list[str], figures: dict[str, Any]
) -> Proof:
    conversations = {conversation["name"]: conversation for conversation in expectation.contract["conversations"]}
    first = next((name for name in wrong if served[name].ids), wrong[0])
    expected, what = conversations[first]["prompt_ids"], served[first]
    share = f"{len(wrong)} of {len(served)} conversations become other prompts than in training"
    bos = expectation.contract["special_ids"].get("bos")
    if _is_double_bos(conversations, served, bos):
        figures["endpoint_difference"] = "one more BOS token before every prompt"
        return Proof(
            FAILED, figures, "double_bos", f"{share}: one more token, the tokenizer's BOS, stands before them",
            "let the server add no BOS (llama.cpp: tokenizer.ggml.add_bos_token false), as the template writes its own",
        )  # fmt: skip
    suspect = _suspect(expectation, served)
    texts = [_text(endpoint, expectation, ids) for ids in (expected, what.ids)] if what.ids else [None, None]
    shown, same_text = "", False
    if texts[0] is not None and texts[1] is not None:
        same_text = texts[0] == texts[1]
        shown = "" if same_text else _first_difference(texts[0], texts[1])
    elif what.count is not None:
        shown = f"{what.count} tokens instead of {len(expected)}"
    figures["endpoint_difference"] = shown
    if same_text:
        return Proof(
            FAILED, figures, "other_tokens", f"{share} (first {first!r}): the same text, and other ids",
            "serve the tokenizer that was saved with the trained model",
        )  # fmt: skip
    by = f", by {suspect}" if suspect else _about_system(conversations, served, wrong)
    if endpoint.engine == OLLAMA and expectation.tokenizer:
        own = template_source.of_folder(expectation.tokenizer) or ""
        by += "".join(f"; {words}" for words in [endpoint_ollama.difference(endpoint.about, own)] if words)
    return Proof(
        FAILED, figures, "other_template", f"{share}{by} (first {first!r}): {shown}",
        "serve the trained model's chat_template.jinja (vLLM: --chat-template), and let nothing add a system prompt",
    )  # fmt: skip


def _is_double_bos(conversations: dict[str, Conversation], served: dict[str, Served], bos: int | None) -> bool:
    """Whether every prompt is that of training with one more BOS before it; where only counts are known, one longer."""
    shown = [(conversations[name]["prompt_ids"], what) for name, what in served.items() if not what.refusal]
    if bos is None or not shown:
        return False
    if any(what.ids for _, what in shown):
        return all(what.ids == [bos, *expected] for expected, what in shown if what.ids)
    begins = all(expected[:1] == [bos] for expected, _ in shown)
    return begins and all(what.count == len(expected) + 1 for expected, what in shown)


def _about_system(conversations: dict[str, Conversation], served: dict[str, Served], wrong: list[str]) -> str:
    """Where the difference goes with the system prompt, in words; empty where it does not."""
    with_system = {name for name in served if conversations[name]["messages"][0]["role"] == "system"}
    if set(wrong) == with_system:
        return ", all those with a system prompt: it is dropped or changed"
    if with_system and not with_system & set(wrong):
        return ", all without a system prompt: the endpoint adds one, or leaves out that of training"
    return ""


def _suspect(expectation: Expectation, served: dict[str, Served]) -> str:
    """The template that makes exactly what the endpoint makes, in words; empty where none that is known does."""
    if expectation.tokenizer is None:
        return ""
    own = template_source.of_folder(expectation.tokenizer)
    known = {name: text for name, folder in expectation.suspects.items() if (text := template_source.of_folder(folder))}
    for name, text in (*known.items(), ("plain ChatML", CHATML)):
        if text != own and _makes(expectation, served, text):
            return name
    return ""


def _makes(expectation: Expectation, served: dict[str, Served], text: str) -> bool:
    conversations = {conversation["name"]: conversation for conversation in expectation.contract["conversations"]}
    assert expectation.tokenizer
    tokenizer = plain_tokenizer.load(expectation.tokenizer)
    for name, what in served.items():
        conversation = conversations[name]
        if what.refusal:
            continue
        try:
            rendered = tokenizer.apply_chat_template(
                conversation["messages"], tools=conversation.get("tools"), chat_template=text, tokenize=False,
                add_generation_prompt=True,
            )  # fmt: skip
        except template.FAILURES:
            return False
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if what.differs(ids):
            return False
    return True


def _text(endpoint: Endpoint, expectation: Expectation, ids: list[int]) -> str | None:
    """The text of token ids, by the tokenizer of training or else by the endpoint's; None where neither is there."""
    if expectation.tokenizer is not None:
        tokenizer = plain_tokenizer.load(expectation.tokenizer)
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    body = {"tokens": ids} if endpoint.engine == LLAMA_CPP else {"model": endpoint.model, "tokens": ids}
    answer = endpoint.offers("/detokenize", body)
    text = answer.get("prompt", answer.get("content")) if isinstance(answer, dict) else None
    return text if isinstance(text, str) else None


def _first_difference(expected: str, served: str) -> str:
    """Both texts around the first place where they differ."""
    at = next(
        (place for place, (left, right) in enumerate(zip(expected, served, strict=False)) if left != right),
        min(len(expected), len(served)),
    )
    start = max(0, at - AROUND)
    return f"{expected[start : at + AROUND]!r} in training, {served[start : at + AROUND]!r} here"
