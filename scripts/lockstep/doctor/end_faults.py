"""Faults 1 and 4: answers without a token that ends them, and masks that hide it."""

import ast
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import Project, fault
from lockstep.doctor.script_tree import (
    Part,
    Scope,
    Script,
    dotted,
    holds_ignored_label,
    is_true,
    keyword,
    last_name,
    names_in,
)

END_TOKEN = re.compile(
    r"(<\|(?:im_end|eot_id|eom_id|end|endoftext|end_of_text|end_of_turn|eot|return)\|>|</s>|<end_of_turn>|<eos>|"
    r"<｜end▁of▁sentence｜>|\[EOS\]|<\|end▁of▁sentence\|>|<turn\|>)\s*\Z"
)
END_NAME = re.compile(r"(^|_)(eos|eot|im_end|end_of_turn|end_token|stop_token)(_|$)", re.IGNORECASE)
PAD_NAME = re.compile(r"(^|_)pad(_token)?(_id)?$|^pad_idx$", re.IGNORECASE)
ONLY_PROMPT = re.compile(
    r"(prompt|instruction|question|query|input|source|context|system|user|prefix)s?$", re.IGNORECASE
)
ANSWER = re.compile(
    r"output|response|answer|completion|target|reply|assistant|solution|回答|答案|回复|输出|(^|_)(out|ans|resp|tgt)$",
    re.IGNORECASE,
)
CURE_END = (
    "append the template's end-of-turn token to every answer and give it a label, or render with the chat template"
)
CURE_MASK = "make masks from the lengths of the rows, and pad with a token that ends nothing"


def missing_end(project: Project) -> Iterator[Finding]:
    """Fault 1: an answer that no token ends, so that the model never learns to stop."""
    for script in project.scripts:
        for maker in script.label_makers:
            if _adds_an_end(script, maker):
                continue
            texts = list(_answers(script, maker))
            if texts:
                yield fault(
                    1,
                    "answers are encoded without the token that ends a turn: the model never learns to stop, and "
                    "answers run on to max_tokens",
                    CURE_END,
                    script,
                    *texts,
                )


def _answers(script: Script, maker: Scope) -> Iterator[ast.AST]:
    """The calls that encode a text which ends in an answer, and in no end token."""
    for call in (n for n in ast.walk(maker) if isinstance(n, ast.Call) and script.is_tokenizing(n)):
        if not call.args:
            continue
        parts = [part for part in script.parts(call.args[0], script.scope_of(call)) if part.text or part.name]
        if not parts or _ends(parts[-1]):
            continue
        last = parts[-1]
        if last.text.strip():  # a prompt, which waits for its answer
            continue
        if len(parts) > 1 or _is_an_endless_answer(script, last):
            yield call


def _is_an_endless_answer(script: Script, part: Part) -> bool:
    """Whether a text that is filled in whole is an answer, or is built elsewhere in the script and ends in one."""
    names = part.name.split(".")
    if any(map(ONLY_PROMPT.search, names)):
        return False
    built = [(value, script.scope_of(value)) for value in script.built(names[-1])]
    if built:
        texts = [[p for p in script.parts(value, scope) if p.text or p.name] for value, scope in built]
        ends = [parts[-1] for parts in texts if len(parts) > 1]
        return bool(ends) and not any(_ends(end) or end.text.strip() for end in ends)
    return any(map(ANSWER.search, names))


def _ends(part: Part) -> bool:
    return bool(END_TOKEN.search(part.text)) or bool(END_NAME.search(part.name.split(".")[-1]))


def _adds_an_end(script: Script, maker: Scope) -> bool:
    """Whether a function appends an end token by its id, or lets the chat template render whole conversations."""
    called = {last_name(node) for node in ast.walk(maker) if isinstance(node, ast.Call)}
    bodies = [maker, *(body for name in sorted(called) if (body := script.function(name)) and body is not maker)]
    nodes = [node for body in bodies for node in ast.walk(body)]
    padding = {id(n) for node in nodes for n in _paddings(node)}
    for node in nodes:
        if id(node) in padding:
            continue
        if isinstance(node, ast.Name | ast.Attribute) and END_NAME.search(last_name(node)):
            return True
        renders = isinstance(node, ast.Call) and last_name(node) == "apply_chat_template"
        if renders and not is_true(keyword(node, "add_generation_prompt")):  # type: ignore[arg-type]
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and END_TOKEN.fullmatch(node.value.strip()):
            return True
        if isinstance(node, ast.List) and any(PAD_NAME.search(last_name(item)) for item in node.elts):
            return True
    return any(is_true(keyword(call, "add_eos_token")) for call in script.calls if last_name(call) == "from_pretrained")


def _paddings(node: ast.AST) -> Iterator[ast.AST]:
    """What only fills up rows, or says with which token: `[pad] * n`, `pad_token = eos_token`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        yield from ast.walk(node)
    if isinstance(node, ast.Assign) and any(PAD_NAME.search(last_name(target)) for target in node.targets):
        yield from ast.walk(node)


def hidden_end(project: Project) -> Iterator[Finding]:
    """Fault 4: a mask that is made from ids which are the padding's, where the end token has the same id."""
    if not project.pads_with_end and project.knows_its_padding:
        return
    where = "pad_token is eos_token here" if project.pads_with_end else "where pad_token is eos_token, as often"
    for script in project.scripts:
        masks = [node for node in script.nodes if _is_mask(project, script, node)]
        if masks:
            yield fault(
                4,
                f"a mask hides every token that equals pad_token ({where}): the real end token is hidden as well, "
                f"and the model never learns to stop",
                CURE_MASK,
                script,
                *masks,
            )
    if project.pads_with_end:
        yield from _collators(project)


def _collators(project: Project) -> Iterator[Finding]:
    for script, call in project.all_calls("DataCollatorForLanguageModeling"):
        masked = keyword(call, "mlm")
        if _comes_from(script, "DataCollatorForLanguageModeling", "transformers") and not is_true(masked):
            yield fault(
                4,
                "DataCollatorForLanguageModeling takes the labels off every token that equals pad_token, which is "
                "eos_token here: the end token is never trained, and the model never stops",
                CURE_MASK,
                script,
                call,
            )


def _comes_from(script: Script, name: str, package: str) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").split(".")[0] == package
        and any(alias.name == name for alias in node.names)
        for node in script.nodes
    )


def _is_mask(project: Project, script: Script, node: ast.AST) -> bool:
    """Whether a node compares token ids with the padding's, to make a mask or labels of them."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        pads = [side for side in sides if PAD_NAME.search(last_name(side))]
        others = [side for side in sides if side not in pads]
        compares = all(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
        if not pads or not others or not compares:
            return False
        if any(names_in(side) & {"eos_token_id", "eos_token", "unk_token_id"} for side in others):
            return False
        if not project.pads_with_end and not any("tok" in dotted(side).lower() for side in pads):
            return False  # a model's own code; here masks are about rows and their tokenizer
        return not all(isinstance(side, ast.Constant) for side in others) and _makes_a_mask(script, node)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("ne", "eq"):
        return any(PAD_NAME.search(last_name(argument)) for argument in node.args) and _makes_a_mask(script, node)
    return False


def _makes_a_mask(script: Script, node: ast.AST) -> bool:
    """Whether the statement around a comparison is about masks or labels."""
    statement = script.statement_of(node)
    if isinstance(statement, ast.If | ast.For | ast.While | ast.With | ast.FunctionDef):
        return False
    words = {dotted(inner).lower() for inner in ast.walk(statement)}
    words |= {str(inner.value).lower() for inner in ast.walk(statement) if isinstance(inner, ast.Constant)}
    about = any("mask" in word or "label" in word or "target" in word for word in words)
    return about or holds_ignored_label(statement)
