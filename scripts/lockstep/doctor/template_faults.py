"""Faults 2 and 3: trained on a template that is not served, and another family's control tokens written by hand."""

import ast
import difflib
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import TRAINERS, Project, body_of, fault
from lockstep.doctor.script_tree import Script, dotted, is_true, keyword, last_name

# Control tokens of a family, and the models that have them.
FAMILIES = {
    "Llama-3": (
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|eom_id|>",
        ),
        r"llama[-_ ]?3",
    ),
    "ChatML": (("<|im_start|>", "<|im_end|>"), r"qwen|qwq|smollm|internlm|hermes|(^|[^a-z])yi-\d"),
    "Gemma": (("<start_of_turn>", "<end_of_turn>"), r"gemma"),
    "Mistral": (("[INST]", "[/INST]"), r"mi[sx]tral|llama[-_ ]?2"),
}
OTHER_TOKENS = (
    "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|observation|>", "<|pad|>", "<|return|>",
    "<|message|>", "<|channel|>", "<|start|>", "<|eot|>", "<|header_start|>", "<|header_end|>",
)  # fmt: skip
# Gemma 4's tokens have their bar on one side: <|turn> begins one, and <turn|> ends it.
ONE_BAR = ("turn", "channel", "think", "tool", "tool_call", "tool_response", "image", "audio", "video")
KNOWN = [token for tokens, _ in FAMILIES.values() for token in tokens] + list(OTHER_TOKENS)
LIKE_A_TOKEN = re.compile(r"<\|[a-z_]{3,24}\|?>|<[a-z_]{3,24}\|>|<\|[a-z_]{3,24}(?=[^a-z_|>])")
OWN_WORDS = re.compile(
    r"(#{2,}\s*(?:instruction|input|response|answer|question|human|user|assistant|system|指令|输入|回答|问题|输出|用户|助手)"
    r"|^(?:human|user|assistant|question|answer|instruction|response|问|答|问题|回答|用户|助手|指令|输入|输出)\s*[:：])",
    re.IGNORECASE | re.MULTILINE,
)
CURE_TEMPLATE = "render training rows and requests with the same chat template: tokenizer.apply_chat_template"


def two_templates(project: Project) -> Iterator[Finding]:
    """Fault 2: rows are rendered in one way for training, and requests in another."""
    served = chat_requests(project)
    if project.mentions(r"^--chat[-_]template\b") or _sets_a_template(project):
        return
    for script in project.scripts:
        for maker in script.label_makers or ([script.tree] if _trains(script) else []):
            nodes, shown = _own_template(script, maker, project)
            if not nodes and maker in (*script.label_makers[-1:], script.tree):
                nodes, shown = _rendered_strings(script)
            if not nodes or _asked_with_it(project, shown):
                continue
            requests = (
                f"requests are rendered with the chat template ({served})"
                if served
                else ("every chat endpoint renders requests with the model's own chat template")
            )
            yield fault(
                2,
                f"rows are rendered with words of their own ({shown!r}), and {requests}: the tuned model is asked in "
                f"a form that it was never trained on",
                CURE_TEMPLATE,
                script,
                *nodes,
            )  # fmt: skip


def chat_requests(project: Project) -> str:
    """Where something asks through a chat template: file and line; empty where nothing does."""
    for script in project.scripts:
        for call in script.calls:
            name = dotted(call.func)
            template = last_name(call) == "apply_chat_template" and is_true(keyword(call, "add_generation_prompt"))
            if template or name.endswith("chat.completions.create"):
                return f"{script.unit.file}:{script.place(call)}"
    for command in project.commands:
        if any("/chat/completions" in word for word in command.words) or "messages" in body_of(command):
            return f"{command.unit.file}:{command.place}"
    return next((f"{c.unit.file}:{c.place}" for c in project.commands if c.starts_vllm), "")


def _sets_a_template(project: Project) -> bool:
    return any(
        isinstance(node, ast.Assign) and any(last_name(target) == "chat_template" for target in node.targets)
        for script in project.scripts
        for node in script.nodes
    )


def _own_template(script: Script, maker: ast.AST, project: Project) -> tuple[list[ast.AST], str]:
    """The strings with which a function renders rows in a way of its own, and what shows that."""
    foreign = _foreign_tokens(project)
    nodes: list[ast.AST] = []
    shown = ""
    for call in (n for n in ast.walk(maker) if isinstance(n, ast.Call) and script.is_tokenizing(n) and n.args):
        scope = script.scope_of(call)
        for part in script.parts(call.args[0], scope):
            own = OWN_WORDS.search(part.text)
            token = next((token for token in foreign if token in part.text), "")
            if own or token:
                nodes.append(part.node)
                shown = shown or token or own[0].strip()  # type: ignore[index]
    return nodes, shown


def _trains(script: Script) -> bool:
    return any(last_name(call) in TRAINERS for call in script.calls)


def _rendered_strings(script: Script) -> tuple[list[ast.AST], str]:
    """The strings of a training script that render a row with words of their own, wherever they stand."""
    nodes: list[ast.AST] = []
    shown = ""
    for node in script.nodes if _trains(script) else ():
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        filled = "{" in text or isinstance(script.statement_of(node), ast.Return | ast.Assign | ast.AugAssign)
        match = OWN_WORDS.search(text)
        if match and filled and id(node) not in script.docstrings:
            nodes.append(node)
            shown = shown or match[0].strip()
    return nodes, shown


def _foreign_tokens(project: Project) -> list[str]:
    """Control tokens that the models of the scripts do not have."""
    models = _families_of(project.texts)
    if len(models) != 1:
        return []
    return [token for family, (tokens, _) in FAMILIES.items() if family not in models for token in tokens]


def _families_of(texts: list[str]) -> set[str]:
    """The families of the models that are named; tokens in the texts are no names."""
    return {
        family
        for family, (_, models) in FAMILIES.items()
        if any(re.search(models, text, re.IGNORECASE) for text in texts if len(text) < 300 and "<|" not in text)
    }


def _asked_with_it(project: Project, shown: str) -> bool:
    """Whether the same words stand in a prompt that goes to completions as it is, and nothing asks by chat."""
    if chat_requests(project) and not project.mentions("/v1/completions"):
        return False
    for script in project.scripts:
        for call in script.calls:
            name = dotted(call.func)
            plain = name.endswith("completions.create") and "chat" not in name
            if plain or (name.endswith(".generate") and call.args):
                prompt = keyword(call, "prompt") or (call.args[0] if call.args else None)
                scope = script.scope_of(call)
                if prompt and any(shown in part.text for part in script.parts(prompt, scope)):
                    return True
    return any(shown in str(body_of(command).get("prompt", "")) for command in project.commands)


def tokens_by_hand(project: Project) -> Iterator[Finding]:
    """Fault 3: control tokens written by hand that are damaged, or that the model does not have."""
    for script in project.scripts:
        damaged = [(node, word) for node in script.strings if (word := damaged_token(str(node.value)))]
        if damaged:
            words = ", ".join(dict.fromkeys(word for _, word in damaged))
            yield fault(
                3,
                f"{words} is no control token but almost one: it becomes plain text, and turns run into each other",
                "let tokenizer.apply_chat_template write control tokens",
                script,
                *(node for node, _ in damaged),
            )
        yield from _foreign(script, project)


def _foreign(script: Script, project: Project) -> Iterator[Finding]:
    every = [token for tokens, _ in FAMILIES.values() for token in tokens]
    if not any(token in str(node.value) for node in script.strings for token in every) or not _composes(script):
        return
    models = _families_of([str(node.value) for node in script.strings]) or _families_of(project.texts)
    if len(models) != 1:
        return
    (model,) = models
    for family, (tokens, _) in FAMILIES.items():
        nodes = [node for node in script.strings if any(token in str(node.value) for token in tokens)]
        if family != model and nodes and not (family == "Mistral" and model == "Llama-3"):
            written = ", ".join(dict.fromkeys(t for n in nodes for t in tokens if t in str(n.value)))
            yield fault(
                3,
                f"{written} are control tokens of {family}, and the model here knows those of {model}: it reads them "
                f"letter by letter, as words",
                "let tokenizer.apply_chat_template write control tokens, and stop words follow the model's own",
                script,
                *nodes,
            )


def _composes(script: Script) -> bool:
    """Whether a script encodes, or asks a model, at all: others may only list the tokens of many families."""
    asks = ("generate", "create", "SamplingParams", "from_pretrained", "LLM")
    return any(script.is_tokenizing(call) or last_name(call) in asks for call in script.calls)


def damaged_token(text: str) -> str:
    """The first word that is almost a control token; empty where none is."""
    for match in LIKE_A_TOKEN.finditer(text):
        word = match[0]
        if word in KNOWN or word.strip("<|>") in ONE_BAR:
            continue
        whole = f"<|{word.strip('<|>')}|>"
        near = difflib.get_close_matches(whole, [token for token in KNOWN if token.startswith("<|")], 1, cutoff=0.9)
        if whole in KNOWN or near:
            return word
    return ""


def control_tokens_in(text: str) -> list[str]:
    """The control tokens that stand in a text."""
    return [token for tokens, _ in FAMILIES.values() for token in tokens if token in text]
