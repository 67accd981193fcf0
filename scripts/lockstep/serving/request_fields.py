"""Fields of a request: taken, left out because they change neither prompt nor decoding, or refused with the reason.

OpenAI's clients send fields that only OpenAI's own service acts on, and null for whatever is not set. Those are taken
out of the body, so that vLLM reads nothing of them. `docs/serving.md` has the same lists.
"""

from typing import Any

CHAT, COMPLETION, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"

SAMPLING = {
    "model", "max_tokens", "min_tokens", "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "stop_token_ids", "ignore_eos", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "allowed_token_ids", "bad_words", "logprobs", "prompt_logprobs", "logprob_token_ids", "stream", "stream_options",
    "response_format", "structured_outputs", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "return_token_ids", "return_tokens_as_token_ids", "request_id", "priority",
}  # fmt: skip
PROMPT = {"add_special_tokens"}  # only as false, as in training
TAKEN = {
    CHAT: SAMPLING | PROMPT | {
        "messages", "tools", "tool_choice", "parallel_tool_calls", "max_completion_tokens", "top_logprobs", "echo",
        "add_generation_prompt", "continue_final_message", "include_reasoning",
    },
    COMPLETION: SAMPLING | PROMPT | {"prompt", "echo", "suffix"},
    TOKENIZE: PROMPT | {
        "model", "messages", "prompt", "tools", "add_generation_prompt", "continue_final_message", "return_token_strs",
    },
}  # fmt: skip
# What tells a service about the client, how to bill, to cache or to hurry, whatever the value.
LEFT_OUT = {
    "metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
}  # fmt: skip
# Left out with these values, and refused with any other: for this reason.
ONLY_AS: dict[str, tuple[tuple[Any, ...], str]] = {
    "modalities": ((["text"], []), "this server answers with text only"),
    "audio": ((), "this server answers with text only"),
    "web_search_options": ((), "this server searches nothing"),
    "moderation": ((), "this server judges no texts"),
    "functions": (([],), "it is the older name: send tools"),
    "function_call": (("none", "auto"), "it is the older name: send tool_choice"),
    "best_of": ((1,), "this server ranks no answers: ask for n of them"),
}
# What other routes and programs call a field of ours.
MEANT = {
    CHAT: {
        "prompt": "messages", "input": "messages", "max_output_tokens": "max_completion_tokens",
        "max_new_tokens": "max_completion_tokens", "stop_sequences": "stop",
    },
    COMPLETION: {
        "messages": "prompt", "input": "prompt", "max_completion_tokens": "max_tokens",
        "max_output_tokens": "max_tokens", "max_new_tokens": "max_tokens", "top_logprobs": "logprobs",
        "stop_sequences": "stop",
    },
    TOKENIZE: {"input": "messages", "text": "prompt"},
}  # fmt: skip


def tidy(route: str, body: dict[str, Any]) -> None:
    """Take out of a body, in place, what is null and what changes neither prompt nor decoding."""
    drop_nulls(body)
    for name in LEFT_OUT & body.keys():
        del body[name]
    for name, (values, _) in ONLY_AS.items():
        if name in body and any(body[name] == value and type(body[name]) is type(value) for value in values):
            del body[name]
    options = body.get("stream_options")
    if isinstance(options, dict):
        drop_nulls(options)
        options.pop("include_obfuscation", None)  # padding against listeners, which OpenAI's own service adds
        if not options:
            del body["stream_options"]
    if route == CHAT and body.get("tools") in (None, []):
        for name in ("tools", "parallel_tool_calls"):
            body.pop(name, None)
        if body.get("tool_choice") in ("none", "auto"):
            del body["tool_choice"]
    if body.get("suffix") == "":
        del body["suffix"]


def refusal(route: str, body: dict[str, Any]) -> str | None:
    """Why a field that is left in a body is refused; None where all are taken."""
    for name in sorted(body.keys() - TAKEN[route]):
        if name in ONLY_AS:
            return f"the field {name!r} is not taken with this value: {ONLY_AS[name][1]}"
        if name in MEANT[route]:
            return f"the field {name!r} is not taken here: {route} takes {MEANT[route][name]!r}"
        return f"the field {name!r} is not taken here"
    return None


def drop_nulls(fields: dict[str, Any]) -> None:
    """Take out of an object, in place, what is null: it means not set."""
    for name in [name for name, value in fields.items() if value is None]:
        del fields[name]
