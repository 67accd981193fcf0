"""Faults 5 and 6: prompts cut off by the length of another encoding, and answers cut without a word."""

import ast
import re
from collections.abc import Iterator

from lockstep.doctor.findings import Finding
from lockstep.doctor.project import TRAINERS, Project, fault
from lockstep.doctor.script_tree import (
    Scope,
    Script,
    dotted,
    holds_ignored_label,
    is_true,
    keyword,
    last_name,
    names_in,
)

LIMIT = re.compile(r"max_?(seq(uence)?_?)?len(gth)?|max_tokens|cutoff|block_size|(^|_)limit$|model_max", re.IGNORECASE)
IDS = re.compile(r"(^|_)(input_?)?ids?$|labels?|mask|tokens|tokenized|encod|^full|_full|^seq", re.IGNORECASE)
OF_PROMPT = re.compile(r"prompt|question|query|source|instruction|context|prefix|history", re.IGNORECASE)
SAYS = ("print", "warn", "warning", "info", "error", "log", "debug", "exception", "write")
NOTES = ("append", "add", "update")  # to something whose name tells that it is an account
ACCOUNT = re.compile(r"drop|skip|cut|trunc|long|reject|count|stat|bad|lost|ledger", re.IGNORECASE)
SHORTEST_CUT = 64  # a slice up to a smaller number cuts no rows


def boundary_by_length(project: Project) -> Iterator[Finding]:
    """Fault 5: prompt and prompt + answer are encoded apart, and the one's length cuts the other."""
    for script in project.scripts:
        for scope in script.functions:
            texts = _encoded(script, scope)
            for name, prompt in texts.items():
                longer = [
                    other
                    for other, text in texts.items()
                    if other != name and _begins_with(script, scope, text, prompt)
                ]
                names = {name, *_lengths_of(script, scope, name)}
                cuts = [node for node in ast.walk(scope) if longer and any(_cuts_by(node, n) for n in names)]
                if cuts and not _compares(scope, name, longer):
                    yield fault(
                        5,
                        f"the prompt is encoded apart ({name}), and its length cuts the labels of prompt + answer: "
                        f"where a token spans the seam, the labels begin too early or too late",
                        "encode the answer apart and append its ids, or compare the prompt's ids with the beginning",
                        script,
                        *cuts,
                    )
                    break


def _encoded(script: Script, scope: Scope) -> dict[str, ast.expr]:
    """Name → the text whose token ids it holds."""
    texts: dict[str, ast.expr] = {}
    for name, values in script.assigned(scope).items():
        for value in values:
            call = next((n for n in ast.walk(value) if isinstance(n, ast.Call) and _encodes(script, n)), None)
            if call is not None and (call.args or call.keywords):
                texts[name] = call.args[0] if call.args else call.keywords[0].value
            elif isinstance(value, ast.Subscript | ast.Attribute) and (held := dotted(_root(value))) in texts:
                texts[name] = texts[held]  # ids = encoded["input_ids"]
    return texts


def _lengths_of(script: Script, scope: Scope, name: str) -> list[str]:
    """Names that hold the length of what a name holds."""
    return [
        other
        for other, values in script.assigned(scope).items()
        if any(_is_length_of(node, name) for value in values for node in ast.walk(value)) and other != name
    ]


def _root(node: ast.expr) -> ast.expr:
    while isinstance(node, ast.Subscript | ast.Attribute):
        node = node.value
    return node


def _encodes(script: Script, call: ast.Call) -> bool:
    if last_name(call) == "apply_chat_template":
        tokenize = keyword(call, "tokenize")
        return not (isinstance(tokenize, ast.Constant) and tokenize.value is False)
    if script.is_tokenizing(call):
        return True
    helper = script.function(last_name(call)) if isinstance(call.func, ast.Name) else None
    inside = [node for node in ast.walk(helper) if isinstance(node, ast.Call)] if helper else []
    taken = {argument.arg for argument in helper.args.args[:1]} if helper else set()
    return any(script.is_tokenizing(node) and taken & names_in(node) for node in inside)


def _begins_with(script: Script, scope: Scope, text: ast.expr, prompt: ast.expr) -> bool:
    """Whether a text is the prompt and something after it, as far as the script shows."""
    if ast.dump(text) == ast.dump(prompt):
        return False
    same_call = _of_one_call(*(_value_of(script, scope, node) for node in (text, prompt)))
    if same_call:
        return True
    # messages[:-1] of messages, and prompt in `prompt + answer`
    inner = _root(prompt)
    if isinstance(prompt, ast.Subscript) and isinstance(prompt.slice, ast.Slice) and ast.dump(inner) == ast.dump(text):
        return True
    if isinstance(prompt, ast.Name):
        if prompt.id in names_in(text):
            return True
        values = script.assigned(scope).get(text.id, []) if isinstance(text, ast.Name) else []
        if any(prompt.id in names_in(value) for value in values):
            return True
    long, short = ([p for p in script.parts(t, scope) if p.text or p.name] for t in (text, prompt))
    same = [(p.text, p.name) for p in long[: len(short)]] == [(p.text, p.name) for p in short]
    return len(long) > len(short) > 0 and same and any(part.text for part in short)


def _value_of(script: Script, scope: Scope, node: ast.expr) -> ast.expr:
    values = script.assigned(scope).get(node.id, []) if isinstance(node, ast.Name) else []
    return values[-1] if len(values) == 1 else node


def _of_one_call(text: ast.expr, prompt: ast.expr) -> bool:
    """Whether one function renders both: `render(messages)` and `render(messages[:-1])`, `f(q, a)` and `f(q)`."""
    if not isinstance(text, ast.Call) or not isinstance(prompt, ast.Call) or dotted(text.func) != dotted(prompt.func):
        return False
    if not text.args or not prompt.args or not dotted(text.func):
        return False
    long, short = ([ast.dump(argument) for argument in call.args] for call in (text, prompt))
    if len(short) < len(long):
        return long[: len(short)] == short
    cut = isinstance(prompt.args[0], ast.Subscript) and isinstance(prompt.args[0].slice, ast.Slice)
    return cut and ast.dump(_root(prompt.args[0])) == long[0]


def _cuts_by(node: ast.AST, name: str) -> bool:
    """Whether a node cuts ids or labels at the length of what a name holds."""
    if isinstance(node, ast.Subscript):
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]  # labels[:, :n]
        slices = [part for part in parts if isinstance(part, ast.Slice)]
        bounds = [bound for part in slices for bound in (part.lower, part.upper) if bound]
        return any(_is_length_of(inner, name) for bound in bounds for inner in ast.walk(bound))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):  # [-100] * len(prompt) + full[n:]
        left = node.left
        masks = isinstance(left, ast.BinOp) and isinstance(left.op, ast.Mult) and holds_ignored_label(left)
        cut = any(isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Slice) for n in ast.walk(node.right))
        return masks and cut and any(_is_length_of(inner, name) for inner in ast.walk(node))
    return False


def _is_length_of(node: ast.AST, name: str) -> bool:
    counts = isinstance(node, ast.Call) and last_name(node) == "len" and node.args
    if counts:
        return name in names_in(node.args[0])  # type: ignore[attr-defined]
    if isinstance(node, ast.Subscript | ast.Attribute):  # prompt_ids.shape[1]
        return dotted(_root(node)) == name and "shape" in names_in(node)
    if not isinstance(node, ast.Name):
        return False
    return node.id == name or (bool(re.search(r"len", node.id)) and name.split("_")[0] in node.id)


def _compares(scope: ast.AST, name: str, longer: list[str]) -> bool:
    """Whether the beginning of the longer encoding is compared with the shorter one."""
    for node in ast.walk(scope):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            names = names_in(node)
            if name in names and names & set(longer) and any(isinstance(n, ast.Slice) for n in ast.walk(node)):
                return True
    return False


def silent_cut(project: Project) -> Iterator[Finding]:
    """Fault 6: rows are cut at a length, and with them answers and their end, and nothing counts it."""
    trains = bool(project.all_calls(*TRAINERS)) or any(script.label_makers for script in project.scripts)
    for script in project.scripts:
        if not trains:
            return
        makers = script.label_makers or _mapped(script)
        cuts = [node for maker in makers if not _says(maker) for node in ast.walk(maker) if _cuts(script, maker, node)]
        if cuts and not _filters(script):
            yield fault(
                6,
                "rows are cut at a length without a word: long answers lose their end and the token that ends them, "
                "and nobody learns how many",
                "drop rows that are too long and count them, or raise the length; "
                "`make data` does so with --data.truncation drop",
                script,
                *cuts,
            )


def _mapped(script: Script) -> list[Scope]:
    """Functions that a data set is mapped with."""
    names = {
        inner
        for call in script.calls
        if last_name(call) == "map"
        for argument in [*call.args[:1], *(k.value for k in call.keywords if k.arg == "function")]
        for inner in names_in(argument)
    }
    return [scope for scope in script.functions if not isinstance(scope, ast.Module) and scope.name in names]


def _cuts(script: Script, maker: Scope, node: ast.AST) -> bool:
    """Whether a node of a function cuts rows, and not prompts alone whose answers are encoded apart."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
        upper, lower, target = node.slice.upper, node.slice.lower, dotted(node.value) or " ".join(names_in(node.value))
        keys = [str(n.value) for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
        if upper is None or lower is not None or OF_PROMPT.search(target):
            return False
        number = upper.value if isinstance(upper, ast.Constant) and isinstance(upper.value, int) else 0
        limit = bool(LIMIT.search(last_name(upper))) or number >= SHORTEST_CUT
        return limit and bool(IDS.search(target.split(".")[-1]) or any(IDS.search(key) for key in keys))
    if isinstance(node, ast.Call) and (script.is_tokenizing(node) or last_name(node) == "apply_chat_template"):
        cut = keyword(node, "truncation")
        on = isinstance(cut, ast.Constant) and cut.value in (True, "longest_first", "only_first", "only_second")
        counted = is_true(keyword(node, "return_overflowing_tokens")) or is_true(keyword(node, "return_length"))
        text = node.args[0] if node.args else None
        of_prompt = text is not None and bool(OF_PROMPT.search(" ".join((last_name(text), *_keys(text)))))
        encodings = [n for n in ast.walk(maker) if isinstance(n, ast.Call) and script.is_tokenizing(n)]
        return on and not counted and not (of_prompt and len(encodings) > 1)
    return False


def _keys(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _says(scope: ast.AST) -> bool:
    """Whether rows that are too long are counted, reported, refused or left out."""
    for node in ast.walk(scope):
        if isinstance(node, ast.If) and _asks_for_length(node.test):
            for inner in (n for statement in node.body for n in ast.walk(statement)):
                if isinstance(inner, ast.Raise | ast.Continue | ast.AugAssign):
                    return True
                if isinstance(inner, ast.Return) and (inner.value is None or _is_nothing(inner.value)):
                    return True
                if isinstance(inner, ast.Call) and _is_word(inner):
                    return True
        if isinstance(node, ast.Assert) and _asks_for_length(node.test):
            return True
    return False


def _is_word(call: ast.Call) -> bool:
    """Whether a call tells or notes something."""
    name = last_name(call)
    return name in SAYS or (name in NOTES and bool(ACCOUNT.search(dotted(call.func))))


def _is_nothing(node: ast.expr) -> bool:
    empty = isinstance(node, ast.List | ast.Dict) and not list(ast.iter_child_nodes(node))[:1]
    return empty or (isinstance(node, ast.Constant) and node.value in (None, False))


def _asks_for_length(test: ast.AST) -> bool:
    compares = any(isinstance(node, ast.Compare) for node in ast.walk(test))
    return compares and any(isinstance(n, ast.Call) and last_name(n) == "len" for n in ast.walk(test))


def _filters(script: Script) -> bool:
    """Whether rows are filtered by their length."""
    for call in script.calls:
        if last_name(call) == "filter" and call.args:
            function = script.function(last_name(call.args[0]))
            body = function or call.args[0]
            if any(isinstance(n, ast.Call) and last_name(n) == "len" for n in ast.walk(body)):
                return True
    return False
