"""Faults 7 and 8: options and names that vLLM does not have, and weights that are not those that were trained."""

import ast
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import HALF, Project, body_of, fault, fault_of
from lockstep.doctor.script_tree import Script, dotted, keyword, last_name, names_in

NO_OPTION = re.compile(
    r"--(adapters?|adapter[-_](path|name|dir|model)(-or-path)?|lora|lora[-_](path|adapter|dir|weights)|peft\S*)$"
)
ANY_NAME = re.compile(
    r"(^|[-_/ ])(local|dummy|placeholder|any|anything|default|your|my|xxx+|test|foo|empty|model)($|[-_/ ])|^gpt-",
    re.IGNORECASE,
)
IGNORED = re.compile(
    r"忽略|占位|随意|任意|ignor|placeholder|any name|arbitrary|whatever|does ?n.t matter", re.IGNORECASE
)
LOCAL = re.compile(r"localhost|127\.0\.0\.1|0\.0\.0\.0|::1|host\.docker\.internal")
OF_BFLOAT16 = re.compile(
    r"qwen|llama[-_ ]?3|mistral|mixtral|gemma|smollm|phi-[34]|deepseek|glm-4|internlm[23]|yi-1", re.IGNORECASE
)
COMPARES = re.compile(
    r"allclose|kl_div|isclose|assert_close|perplexity|evaluate|logits|log_softmax|logprobs?|max_diff|norm$"
)
CURE_LORA = "--enable-lora --lora-modules NAME=FOLDER, with --max-lora-rank of at least the adapter's r"


def no_such_option(project: Project) -> Iterator[Finding]:
    """Fault 7: options that vLLM's server does not have, and names of models that nobody serves."""
    for command in project.commands:
        if not command.starts_vllm:
            continue
        options = [word.split("=")[0] for word in command.words if NO_OPTION.match(word.split("=")[0])]
        if options:
            yield fault_of(7, f"vLLM has no option {', '.join(options)}: the server does not start", CURE_LORA, command)
        if command.has("--lora-modules") and not command.has("--enable-lora"):
            yield fault_of(
                7,
                "--lora-modules without --enable-lora: the server does not start with the adapter",
                CURE_LORA,
                command,
            )
    for script, call in project.all_calls("LLM", "AsyncEngineArgs", "EngineArgs"):
        gone = [
            k for k in call.keywords if k.arg in ("adapter", "adapter_path", "lora_path", "peft_path", "lora_modules")
        ]
        if gone:
            names = ", ".join(str(k.arg) for k in gone)
            cure = "enable_lora=True, and LoRARequest(name, 1, folder) with each generate"
            yield fault(7, f"vLLM's {last_name(call)} has no argument {names}", cure, script, *(k.value for k in gone))
    yield from _names(project)


def _names(project: Project) -> Iterator[Finding]:
    served = _served(project)
    listed = any(dotted(call.func).endswith("models.list") for script in project.scripts for call in script.calls)
    for script in project.scripts:
        lines = script.unit.text.split("\n")
        for call in script.calls:
            if not re.search(r"(completions|responses|embeddings)\.create$", dotted(call.func)) or listed:
                continue
            value = _constant(script, keyword(call, "model"))
            if value is None or not _is_local(script, project):
                continue
            node, name = value
            remark = bool(IGNORED.search(lines[node.lineno - 1]))
            if name not in served and (served or remark or ANY_NAME.search(name)):
                yield fault(7, _unknown(name, served), _named(served), script, node)
        for node in script.strings if not listed else ():
            yield from _posted(script, node, served)
    for command in project.commands:
        body = body_of(command)
        name = str(body.get("model") or "")
        asks = any(re.search(r"/v1/|/chat/completions|/completions", word) for word in command.words)
        if name and asks and name not in served and (served or ANY_NAME.search(name)):
            yield fault_of(7, _unknown(name, served), _named(served), command)


def _posted(script: Script, node: ast.Constant, served: set[str]) -> Iterator[Finding]:
    """`{"model": "name", "messages": …}` that is sent by requests or httpx."""
    if node.value != "model":
        return
    for holder in (n for n in script.nodes if isinstance(n, ast.Dict) and node in n.keys):
        keys = {key.value for key in holder.keys if isinstance(key, ast.Constant)}
        value = _constant(script, holder.values[holder.keys.index(node)])
        if value and keys & {"messages", "prompt"} and any(LOCAL.search(str(n.value)) for n in script.strings):
            inner, name = value
            if name not in served and (served or ANY_NAME.search(name)):
                yield fault(7, _unknown(name, served), _named(served), script, inner)


def _constant(script: Script, node: ast.expr | None) -> tuple[ast.expr, str] | None:
    if isinstance(node, ast.Name):
        values = [value for scope in script.functions for value in script.assigned(scope).get(node.id, [])]
        node = values[-1] if len(values) == 1 else None
    return (node, node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _is_local(script: Script, project: Project) -> bool:
    own = [str(node.value) for node in script.strings]
    return any(LOCAL.search(text) for text in own) or any(command.starts_vllm for command in project.commands)


def _served(project: Project) -> set[str]:
    """The names that the servers in these files answer to; empty where no server stands in them."""
    names: set[str] = set()
    for command in project.commands:
        if not command.starts_vllm:
            continue
        own = command.values("--served-model-name")
        if not own:
            own = command.values("--model")[:1]
            words = list(command.words)
            if "serve" in words[:-1] and not own:
                own = [words[words.index("serve") + 1]]
        names |= {*own, *(module.split("=")[0] for module in command.values("--lora-modules"))}
    return {name for name in names if not name.startswith("-")}


def _unknown(name: str, served: set[str]) -> str:
    known = f"; served here: {', '.join(sorted(served))}" if served else ""
    return f"the model name {name!r} is none that the server knows, and vLLM answers 404 to it{known}"


def _named(served: set[str]) -> str:
    name = min(served, key=len) if served else "NAME"
    return f"send a name of GET /v1/models, such as {name}, or start the server with --served-model-name"


def other_weights(project: Project) -> Iterator[Finding]:
    """Fault 8: merged onto other weights than were trained on, unmeasured, or served in another dtype."""
    for script in project.scripts:
        merges = [call for call in script.calls if last_name(call) in ("merge_and_unload", "merge_adapter")]
        if merges and project.of_four_bits and not _measures(script):
            yield fault(
                8,
                "an adapter that was trained on 4-bit weights is merged onto others, and nothing measures what that "
                "changes: the merged model is not the one that was trained",
                "merge onto the dequantized weights and compare with the trained model: "
                "`make merge ARGS='--adapter.path FOLDER'`",
                script,
                *merges,
            )
        yield from _half(script, project)
    for command in project.commands:
        dtype = (command.values("--dtype") or [""])[0]
        if command.starts_vllm and dtype in HALF and _is_bfloat16(" ".join(command.words), project):
            yield fault_of(8, _served_in_half(project), "--dtype bfloat16", command)


def _measures(script: Script) -> bool:
    """Whether a script compares models: their logits, losses or answers."""
    return any(COMPARES.search(last_name(call)) for call in script.calls) or any(
        isinstance(node, ast.Attribute) and node.attr in ("logits", "loss") for node in script.nodes
    )


def _is_bfloat16(text: str, project: Project) -> bool:
    return bool(project.trains_in_bfloat16) or bool(OF_BFLOAT16.search(text))


def _served_in_half(project: Project) -> str:
    where = project.trains_in_bfloat16
    trained = f"what was trained in bfloat16 ({where})" if where else "a model whose weights are bfloat16"
    return f"{trained} is computed in float16 here: large values overflow, and answers are not the trained model's"


def _half(script: Script, project: Project) -> Iterator[Finding]:
    nodes = []
    for call in script.calls:
        if last_name(call) not in ("from_pretrained", "LLM", "AsyncEngineArgs", "EngineArgs", "pipeline"):
            continue
        for name in ("dtype", "torch_dtype"):
            value = keyword(call, name)
            if value is not None and _is_half(value):
                nodes.append(value)
    for node in script.nodes:  # {"torch_dtype": torch.float16}, model.half()
        if isinstance(node, ast.Call) and dotted(node.func).endswith("model.half"):
            nodes.append(node)
    own = " ".join(str(node.value) for node in script.strings if len(str(node.value)) < 300)
    serves = any(last_name(call) in ("LLM", "generate") for call in script.calls)
    trains = bool(project.trains_in_bfloat16)
    if nodes and (trains or (serves and OF_BFLOAT16.search(own))):
        yield fault(
            8, _served_in_half(project), "load and serve in the dtype of the training, bfloat16", script, *nodes
        )


def _is_half(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return node.value in HALF
    return isinstance(node, ast.Attribute) and bool(names_in(node) & {"float16", "half"})
