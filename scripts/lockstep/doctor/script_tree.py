"""A Python script as a tree: what is called, what strings it builds, and what its names stand for. Nothing is run."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from lockstep.doctor.script_text import Unit, without_magic

DIGIT_IMPORT = re.compile(
    r"^(?P<start>[ \t]*from[ \t]+)(?P<name>\.*(?:\w+\.)*\d\w*)(?P<end>[ \t]+import\b)|"
    r"^(?P<plain>[ \t]*import[ \t]+)(?P<module>\d\w*)",
    re.MULTILINE,
)
TOKENIZERS = re.compile(r"(^|_)tok(eni[sz]er)?s?$", re.IGNORECASE)
OF_CLASSES = re.compile(r"(Sequence|Token)Classification|^num_labels$|MultipleChoice|ForMaskedLM")
ENCODERS = ("encode", "encode_plus", "batch_encode_plus", "__call__")
DEEPEST = 8  # names and functions that are followed to the strings that they stand for

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module


@dataclass(frozen=True)
class Part:
    """A piece of a built string: words as they stand in the script, or what is filled in.

    Attributes:
        text: the words; empty where something is filled in.
        name: of what is filled in, such as `answer` or `tokenizer.eos_token`.
        node: where it stands.
    """

    text: str
    name: str
    node: ast.AST


@dataclass
class Script:
    """One Python program.

    Attributes:
        unit: where it stands.
        tree: what could be read of it.
        digit_imports: lines that import a name which begins with a digit.
        syntax_error: the line and the words of what cannot be read at all; the tree is empty then.
    """

    unit: Unit
    tree: ast.Module
    digit_imports: tuple[tuple[int, str], ...] = ()
    syntax_error: tuple[int, str] | None = None
    _names: dict[ast.AST, dict[str, list[ast.expr]]] = field(default_factory=dict)

    def place(self, node: ast.AST) -> str:
        """What to call the line of a node."""
        return self.unit.place(getattr(node, "lineno", 1))

    @cached_property
    def calls(self) -> list[ast.Call]:
        """All calls."""
        return [node for node in self.nodes if isinstance(node, ast.Call)]

    @cached_property
    def functions(self) -> list[Scope]:
        """Its functions, and last what stands outside of them."""
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [*(node for node in ast.walk(self.tree) if isinstance(node, kinds)), self.tree]

    @cached_property
    def _around(self) -> dict[int, tuple[Scope, ast.AST]]:
        """Identity of a node → the innermost function and the innermost simple statement around it."""
        around: dict[int, tuple[Scope, ast.AST]] = {}
        waiting: list[tuple[ast.AST, Scope, ast.AST]] = [(self.tree, self.tree, self.tree)]
        while waiting:
            node, scope, statement = waiting.pop()
            around[id(node)] = scope, statement
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                scope = node
            if isinstance(node, ast.stmt):
                statement = node
            waiting += [(child, scope, statement) for child in ast.iter_child_nodes(node)]
        return around

    def scope_of(self, node: ast.AST) -> Scope:
        """The innermost function around a node; the module where none is."""
        return self._around[id(node)][0]

    def statement_of(self, node: ast.AST) -> ast.AST:
        """The innermost statement around a node."""
        return self._around[id(node)][1]

    @cached_property
    def docstrings(self) -> set[int]:
        """Identities of the strings that only stand there."""
        return {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}

    @cached_property
    def strings(self) -> list[ast.Constant]:
        """All strings of the program but its comments and docstrings."""
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in self.docstrings
        ]

    @cached_property
    def tokenizers(self) -> set[str]:
        """Names that hold a tokenizer because they were loaded as one."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                loader = dotted(node.value.func)
                if re.search(r"Tokenizer\w*\.from_pretrained$|^get_tokenizer$|\.get_tokenizer$", loader):
                    names |= {dotted(target).split(".")[-1] for target in node.targets}
        return names - {""}

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def label_makers(self) -> list[Scope]:
        """The functions that turn rows into token ids and labels, innermost ones only."""
        makers: list[Scope] = []
        if any(OF_CLASSES.search(name) for name in names_in(self.tree)):
            return makers  # labels are classes there, and no texts
        for scope in self.functions:
            own = [scope] if not isinstance(scope, ast.Module) else [n for n in scope.body if not _is_definition(n)]
            inner = {node for root in own for node in ast.walk(root)}
            if any(maker in inner for maker in makers):
                continue
            encodes = any(isinstance(node, ast.Call) and self.is_tokenizing(node) for node in inner)
            if encodes and (any(map(_names_labels, inner)) or any(map(is_ignored_label, inner))):
                makers.append(scope)
        return makers or self._makers_for_a_collator()

    def _makers_for_a_collator(self) -> list[Scope]:
        """The functions that rows are mapped with, where a collator makes the labels of their ids later."""
        if not any(last_name(call) == "DataCollatorForLanguageModeling" for call in self.calls):
            return []
        scopes: dict[Scope, None] = {}
        for call in self.calls:
            if last_name(call) != "map":
                continue
            given = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "function")]
            bodies = [self.function(last_name(node)) or node for node in given]
            for node in (inner for body in bodies for inner in ast.walk(body)):
                if isinstance(node, ast.Call) and self.is_tokenizing(node):
                    scopes[self.scope_of(node)] = None
        return list(scopes)

    def built(self, field: str) -> list[ast.expr]:
        """What the script puts into a field of rows: `{"text": value}`, `row["text"] = value`."""
        values = []
        for node in self.nodes:
            if isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                values += [v for key, v in pairs if isinstance(key, ast.Constant) and key.value == field]
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                        values += [node.value] if target.slice.value == field else []
        return values

    def is_tokenizing(self, call: ast.Call) -> bool:
        """Whether a call turns texts into token ids."""
        name = dotted(call.func)
        *before, last = name.split(".")
        holder = before[-1] if last in ENCODERS and before else last
        if holder in self.tokenizers:
            return True
        return bool(TOKENIZERS.search(holder)) and self.function(holder) is None

    def assigned(self, scope: Scope) -> dict[str, list[ast.expr]]:
        """Name → what is assigned or appended to it in a scope, functions inside it aside."""
        if scope not in self._names:
            names: dict[str, list[ast.expr]] = {}
            for node in own_nodes(scope):
                for name, value in _assignments(node):
                    names.setdefault(name, []).append(value)
            self._names[scope] = names
        return self._names[scope]

    def function(self, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """The function of a name."""
        return next((f for f in self.functions if not isinstance(f, ast.Module) and f.name == name), None)

    def parts(self, node: ast.expr, scope: Scope, depth: int = 0) -> list[Part]:
        """The string that an expression builds, piece by piece; of several that it may be, the last one."""
        if depth > DEEPEST:
            return [Part("", dotted(node), node)]
        if isinstance(node, ast.Constant):
            return [Part(node.value, "", node)] if isinstance(node.value, str) else []
        if isinstance(node, ast.JoinedStr):
            return [part for value in node.values for part in self.parts(value, scope, depth + 1)]
        if isinstance(node, ast.FormattedValue):
            return self.parts(node.value, scope, depth + 1)
        if isinstance(node, ast.BinOp):
            return self._of_operator(node, scope, depth)
        if isinstance(node, ast.Call):
            return self._of_call(node, scope, depth)
        if isinstance(node, ast.IfExp | ast.BoolOp):
            chosen = node.body if isinstance(node, ast.IfExp) else node.values[0]
            return self.parts(chosen, scope, depth + 1)
        if isinstance(node, ast.List | ast.Tuple):
            return [part for value in node.elts for part in self.parts(value, scope, depth + 1)]
        if isinstance(node, ast.ListComp | ast.GeneratorExp):
            return self.parts(node.elt, scope, depth + 1)
        if isinstance(node, ast.Name):
            return self._of_name(node, scope, depth)
        return [Part("", _filled(node), node)]

    def _of_name(self, node: ast.Name, scope: Scope, depth: int) -> list[Part]:
        for place in (scope, self.tree):
            values = self.assigned(place).get(node.id)
            texts = [value for value in values or () if not (isinstance(value, ast.List) and not value.elts)]
            others = [value for value in texts if node.id not in names_in(value)]
            if not others:
                continue
            added = [value for value in texts if node.id in names_in(value)]  # text = text + end; text += end is one
            parts = self.parts(others[-1], place, depth + 1)
            for value in added:
                parts += self.parts(_rest(value, node.id), place, depth + 1)
            if any(part.text for part in parts):
                return parts
            return [Part("", f"{node.id}.{parts[-1].name}" if parts else node.id, node)]
        return [Part("", node.id, node)]

    def _of_operator(self, node: ast.BinOp, scope: Scope, depth: int) -> list[Part]:
        left = self.parts(node.left, scope, depth + 1)
        if isinstance(node.op, ast.Mod):
            return [piece for part in left for piece in _placeholders(part, r"%[sdr]|%\(\w+\)s")]
        return left + self.parts(node.right, scope, depth + 1)

    def _of_call(self, node: ast.Call, scope: Scope, depth: int) -> list[Part]:
        name = dotted(node.func).split(".")[-1]
        if isinstance(node.func, ast.Attribute):
            if name == "format":
                template = self.parts(node.func.value, scope, depth + 1)
                return [piece for part in template for piece in _placeholders(part, r"\{\w*(?:\[\w+\])?\}")]
            if name == "join" and node.args:
                return self.parts(node.args[0], scope, depth + 1)
            if name in ("strip", "rstrip", "lstrip", "replace", "lower"):
                inner = self.parts(node.func.value, scope, depth + 1)
                return inner if any(part.text for part in inner) else [Part("", _filled(node.func.value), node)]
        body = self.function(name)
        returns = [n for n in own_nodes(body) if isinstance(n, ast.Return)] if body else []
        if body and returns and returns[-1].value is not None:
            return self.parts(returns[-1].value, body, depth + 1)
        return [Part("", _filled(node), node)]


def parse(unit: Unit) -> Script:
    """The script of a unit; what imports a name that begins with a digit is read as if it began with a letter."""
    text = without_magic(unit.text) if unit.places else unit.text
    imports = []
    for match in DIGIT_IMPORT.finditer(text):
        imports.append((text.count("\n", 0, match.start()) + 1, match["name"] or match["module"]))
    readable = DIGIT_IMPORT.sub(_with_a_letter, text)
    try:
        return Script(unit, ast.parse(readable), tuple(imports))
    except SyntaxError as error:
        return Script(unit, ast.Module([], []), tuple(imports), (error.lineno or 1, error.msg))
    except (ValueError, RecursionError, MemoryError) as error:
        return Script(unit, ast.Module([], []), tuple(imports), (1, str(error)))


def _with_a_letter(match: re.Match[str]) -> str:
    if match["plain"]:
        return f"{match['plain']}n{match['module']}"
    return match["start"] + re.sub(r"(^|[.])(?=[0-9])", r"\1n", match["name"]) + match["end"]


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of functions inside it; classes and lambdas belong to it."""
    waiting = list(ast.iter_child_nodes(scope))[::-1]
    while waiting:  # not by recursion: a long sum is a deep tree
        node = waiting.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            waiting += list(ast.iter_child_nodes(node))[::-1]


def dotted(node: ast.AST) -> str:
    """The dotted name of an expression, such as `self.tokenizer`; empty where it is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else node.attr
    return ""


def last_name(node: ast.AST) -> str:
    """The last part of a dotted name; that of a called function for a call."""
    return dotted(node.func if isinstance(node, ast.Call) else node).split(".")[-1]


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    """The value of a named argument."""
    return next((argument.value for argument in call.keywords if argument.arg == name), None)


def names_in(node: ast.AST) -> set[str]:
    """All names and attributes in an expression."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | {
        n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)
    }


def is_true(node: ast.expr | None) -> bool:
    """Whether an argument is the constant True."""
    return isinstance(node, ast.Constant) and node.value is True


def holds_ignored_label(node: ast.AST) -> bool:
    """Whether -100 stands in it."""
    return any(map(is_ignored_label, ast.walk(node)))


def is_ignored_label(node: ast.AST) -> bool:
    """Whether a node is the number -100."""
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    return negative and isinstance(node.operand, ast.Constant) and node.operand.value == 100  # type: ignore[attr-defined]


def _is_definition(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def _names_labels(node: ast.AST) -> bool:
    """Whether a node makes labels: a key of a dictionary, an argument, or a name that is assigned."""
    if isinstance(node, ast.Dict):
        return any(isinstance(key, ast.Constant) and key.value == "labels" for key in node.keys)
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "labels"
    if isinstance(node, ast.keyword):
        return node.arg == "labels"
    return isinstance(node, ast.Name) and node.id == "labels" and isinstance(node.ctx, ast.Store)


def _assignments(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for inner, value in zip(target.elts, node.value.elts, strict=False):
                    if isinstance(inner, ast.Name):
                        yield inner.id, value
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and isinstance(node.target, ast.Name) and node.value:
        yield node.target.id, node.value
    elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, ast.BinOp(ast.Name(node.target.id), node.op, node.value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        adds = node.func.attr in ("append", "extend") and isinstance(node.func.value, ast.Name)
        yield (node.func.value.id if adds else "", node.args[0])  # type: ignore[attr-defined]


def _rest(value: ast.expr, name: str) -> ast.expr:
    """What is added to a name in `name + rest`."""
    if isinstance(value, ast.BinOp) and isinstance(value.left, ast.Name) and value.left.id == name:
        return value.right
    if isinstance(value, ast.BinOp) and name in names_in(value.left):
        return ast.BinOp(_rest(value.left, name), value.op, value.right)
    return ast.Constant("")


def _filled(node: ast.expr) -> str:
    """The name of what is filled into a string: `example['output']` and `example.get("output")` are `output`."""
    if isinstance(node, ast.Subscript):
        key = node.slice
        return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else dotted(node.value)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
            key = node.args[0]
            return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else dotted(node.func)
        return dotted(node.func)
    return dotted(node)


def _placeholders(part: Part, pattern: str) -> list[Part]:
    """A template's text with its placeholders as parts of their own."""
    if not part.text:
        return [part]
    pieces = re.split(f"({pattern})", part.text)
    return [
        Part("", re.sub(r"\W", "", piece), part.node) if number % 2 else Part(piece, "", part.node)
        for number, piece in enumerate(pieces)
        if piece
    ]
