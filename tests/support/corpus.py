"""Hostile files, and what stage 01 promises to make of each: every record kept as it is, or rejected for this reason.

The expectations are written from the promise, not from the code. Nothing here is random: equal
calls give equal files.
"""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

BROKEN = "broken_file"
BOM = b"\xef\xbb\xbf"
MEBIBYTE = 2**20

Outcome = str | tuple[str, ...]  # a reason's code, or the contents of a kept row's messages
Entry = tuple[bytes, Outcome]

# A template that writes tools, calls and thoughts, so that rows which have them can be kept.
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.reasoning_content %}{{ '[' + message.reasoning_content + ']' }}{% endif %}{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Case:
    """One file.

    Attributes:
        expected: what becomes of its records, in order; record n is line, element or table row n.
    """

    name: str
    data: bytes
    expected: tuple[Outcome, ...]

    @property
    def broken(self) -> bool:
        """Whether the stage must refuse the whole file."""
        return BROKEN in self.expected

    @property
    def rejects(self) -> list[tuple[int, str]]:
        """(record, reason) of all that is not kept."""
        return [(place, found) for place, found in enumerate(self.expected, 1) if isinstance(found, str)]

    @property
    def kept(self) -> dict[int, tuple[str, ...]]:
        """Record → the contents of its messages."""
        return {place: found for place, found in enumerate(self.expected, 1) if isinstance(found, tuple)}


@cache
def cases() -> tuple[Case, ...]:
    """The whole corpus; a number before each name makes it unique."""
    parts = (
        syntax, line_breaks, encodings, marks, sizes, semantics, sound, arrays, tables, parquets, zipped,
    )  # fmt: skip
    made: list[Case] = []
    for part in parts:
        for name, data, expected in part():
            made.append(Case(f"{len(made):03}_{name}", data, tuple(expected)))
    return tuple(made)


def write(folder: Path, wanted: Sequence[Case]) -> list[Path]:
    """The files of these cases, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in wanted:
        (folder / case.name).write_bytes(case.data)
    return [folder / case.name for case in wanted]


# --- building blocks ---

Made = Iterator[tuple[str, bytes, Sequence[Outcome]]]
_count = 0


def unique() -> int:
    """A number for a row's text, because equal rows are dropped as duplicates."""
    global _count
    _count += 1
    return _count


def js(value: Any) -> bytes:
    """JSON in UTF-8, as most programs write it."""
    return json.dumps(value, ensure_ascii=False).encode()


def fresh(data: bytes | str, outcome: Outcome) -> Entry:
    """An entry whose every `@` is now a number of its own."""
    data, number = data.encode() if isinstance(data, str) else data, str(unique())
    if isinstance(outcome, tuple):
        outcome = tuple(text.replace("@", number) for text in outcome)
    return data.replace(b"@", number.encode()), outcome


def good() -> Entry:
    """A sound Alpaca row that no other equals."""
    return fresh('{"instruction": "question @", "output": "answer @"}', ("question @", "answer @"))


def row(question: str, answer: str) -> Entry:
    """A sound Alpaca row with these texts."""
    return js({"instruction": question, "input": "", "output": answer}), (question, answer)


def lines(*entries: Entry, mark: bytes = b"\n", end: bytes = b"\n") -> tuple[bytes, list[Outcome]]:
    """Entries as lines, and their outcomes."""
    return mark.join(data for data, _ in entries) + end, [outcome for _, outcome in entries]


def array(*entries: Entry) -> tuple[bytes, list[Outcome]]:
    """Entries as elements of a JSON array, and their outcomes."""
    return b"[" + b",\n ".join(data for data, _ in entries) + b"]", [outcome for _, outcome in entries]


def between(data: bytes | str, outcome: Outcome) -> tuple[bytes, list[Outcome]]:
    """A line between two sound ones, which it must not harm."""
    return lines(good(), fresh(data, outcome), good())


# --- JSON lines that are none ---


def syntax() -> Made:
    """Damage inside one line costs that line alone."""
    whole = '{"instruction": "q", "input": "", "output": "a\\n\\u4f60", "n": -1.5e3, "t": true, "z": null}'
    cuts = {
        "brace": 1, "key_open": 2, "key": 8, "key_closed": 14, "colon": 15, "value_open": 17, "value": 18,
        "value_closed": 19, "comma": 20, "backslash": whole.index("\\n") + 1, "escape": whole.index("\\u") + 4,
        "number": whole.index("-1") + 1, "exponent": whole.index("e3") + 1, "true": whole.index("true") + 2,
        "null": whole.index("null") + 3, "last": len(whole) - 1,
    }  # fmt: skip
    for name, place in cuts.items():
        yield f"cut_{name}.jsonl", *between(whole[:place], "bad_json")
        data, outcomes = lines(good(), (whole[:place].encode(), "bad_json"), end=b"")
        yield f"cut_{name}_at_end.jsonl", data, outcomes
    for name, text in {
        "two_objects": '{"instruction": "a", "output": "b"}{"instruction": "c", "output": "d"}',
        "two_objects_spaced": '{"instruction": "a", "output": "b"} {"instruction": "c", "output": "d"}',
        "comma_after": '{"instruction": "a", "output": "b"},',
        "comma_inside": '{"instruction": "a", "output": "b",}',
        "no_comma": '{"instruction": "a" "output": "b"}',
        "single_quotes": "{'instruction': 'a', 'output': 'b'}",
        "no_quotes": '{instruction: "a", output: "b"}',
        "python": '{"instruction": "a", "output": None}',
        "comment": '{"instruction": "a", "output": "b"} // c',
        "only_comment": "# a comment",
        "plain_text": "Once upon a time",
        "bad_escape": '{"instruction": "a", "output": "\\x41"}',
        "short_escape": '{"instruction": "a", "output": "\\u12"}',
        "raw_tab": '{"instruction": "a", "output": "b\tc"}',
        "raw_nul": '{"instruction": "a\0", "output": "b"}',
        "raw_escape_character": '{"instruction": "a\x1b[0m", "output": "b"}',
        "only_nul": "\0",
        "many_nul": "\0" * 4096,
        "nul_after": '{"instruction": "a", "output": "b"}\0',
        "nul_before": '\0{"instruction": "a", "output": "b"}',
        "leading_zero": '{"instruction": "a", "output": "b", "n": 01}',
        "plus": '{"instruction": "a", "output": "b", "n": +1}',
        "hex": '{"instruction": "a", "output": "b", "n": 0x1}',
        "curly_quotes": "{“instruction”: “a”, “output”: “b”}",
        "no_break_space": '\u00a0{"instruction": "a", "output": "b"}',
        "ideographic_space": "\u3000",
        "closing": "]",
        "deep_array": "[" * 100_000,
        "deep_object": '{"a":' * 100_000,
        "deep_and_closed": '{"instruction": "a", "output": "b", "x": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "separator_0x1e": '\x1e{"instruction": "a", "output": "b"}',
    }.items():
        yield f"{name}.jsonl", *between(text, "bad_json")


def line_breaks() -> Made:
    """Only \\n ends a line of JSONL; all else is text, or no JSON."""
    yield "crlf.jsonl", *lines(good(), good(), good(), mark=b"\r\n", end=b"\r\n")
    yield "crlf_mixed.jsonl", *lines(good(), good(), good(), mark=b"\r\n", end=b"\n")
    yield "cr_twice.jsonl", *lines(good(), good(), mark=b"\r\r\n")
    yield "no_last_break.jsonl", *lines(good(), good(), end=b"")
    yield "crlf_no_last_break.jsonl", *lines(good(), good(), mark=b"\r\n", end=b"\r")
    yield "one_line_no_break.jsonl", *lines(good(), end=b"")
    for name, mark in {"cr": b"\r", "form_feed": b"\f", "u2028": b"\xe2\x80\xa8", "u0085": b"\xc2\x85"}.items():
        data, _ = lines(good(), good(), mark=mark)
        yield f"{name}_for_newline.jsonl", data, ["bad_json"]
    yield "u0085_in_prompt.jsonl", *lines(good(), row(f"a\x85b{unique()}", "c"), good())
    yield "u0085_in_answer.jsonl", *lines(good(), (row("a", "c\x85d")[0], "garbled"), good())
    for name, char in {"u2028": "\u2028", "u2029": "\u2029", "del": "\x7f"}.items():
        yield f"{name}_in_text.jsonl", *lines(good(), row(f"a{char}b{unique()}", f"c{char}d"), good())
    blank = b"", "blank"
    yield "blank_lines.jsonl", *lines(blank, good(), blank, blank, good(), blank)
    yield "blank_crlf.jsonl", *lines(good(), blank, good(), mark=b"\r\n")
    yield "blank_spaces.jsonl", *lines(good(), (b"   ", "blank"), (b"\t", "blank"), (b" \t\r", "blank"), good())
    yield "blank_form_feed.jsonl", *lines((b"\f", "blank"), good(), (b"\v", "blank"), good())
    yield "spaces_around.jsonl", *lines(good(), fresh('  \t{"instruction": "q@", "output": "a"} \t', ("q@", "a")))
    yield "empty.jsonl", b"", []
    yield "empty.json", b"", []
    yield "only_newline.jsonl", b"\n", ["blank"]
    yield "only_whitespace.jsonl", b" \t\r\n\n  ", ["blank"] * 3
    yield "only_whitespace.json", b" \n\n", ["blank"] * 2
    yield "only_mark.jsonl", BOM, ["blank"]
    data, outcomes = lines(good())
    yield "many_last_breaks.jsonl", data + b"\n" * 5, [*outcomes, *["blank"] * 5]


# --- wrong encodings ---


def undecodable(data: bytes) -> list[Outcome]:
    """What lines of another encoding are: no UTF-8 where a byte says so, no JSON otherwise."""
    found: list[Outcome] = []
    for line in data.split(b"\n")[: None if data[-1:] != b"\n" else -1]:
        try:
            found.append("bad_json" if line.decode().strip() else "blank")
        except UnicodeDecodeError:
            found.append("bad_utf8")
    return found


def encodings() -> Made:
    """A file in another encoding loses the lines that cannot be read, and gives no wrong text."""
    two = '{"instruction": "ab", "output": "cd"}\n{"instruction": "ef", "output": "gh"}\n'
    chinese = '{"instruction": "你是谁？", "output": "本宫沈清漪。"}\n'
    for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        data = two.encode(name)
        yield f"{name}.jsonl", data, undecodable(data)
        data = chinese.encode(name)
        yield f"{name}_chinese.jsonl", data, undecodable(data)
    for name, text in {
        "gbk": chinese, "gb18030": chinese.replace("谁", "𠀀"), "big5": chinese.replace("谁", "誰").replace("宫", "宮").replace("漪", "功"),
        "shift-jis": '{"instruction": "表ソ能", "output": "です"}\n', "euc-kr": '{"instruction": "한국", "output": "어"}\n',
        "latin-1": '{"instruction": "café", "output": "über"}\n', "cp1252": '{"instruction": "“a”", "output": "€"}\n',
        "koi8-r": '{"instruction": "кто", "output": "я"}\n',
    }.items():  # fmt: skip
        data, outcomes = lines(good(), (text.encode(name).strip(), "bad_utf8"), good())
        yield f"{name}.jsonl", data, outcomes
        yield f"{name}_alone.jsonl", text.encode(name), ["bad_utf8"]
    for name, bad in {
        "overlong_slash": b"\xc0\xaf", "overlong_nul": b"\xc0\x80", "overlong_three": b"\xe0\x80\xaf", "lone_follower": b"\x80",
        "cut_two": b"\xc3", "cut_three": b"\xe4\xbd", "cut_four": b"\xf0\x9f\x98", "above_unicode": b"\xf4\x90\x80\x80",
        "five_bytes": b"\xf8\x88\x80\x80\x80", "ff": b"\xff", "cesu_pair": b"\xed\xa0\xbd\xed\xb8\x80", "cesu_lone": b"\xed\xa0\x80",
    }.items():  # fmt: skip
        entry = b'{"instruction": "q' + bad + b'", "output": "a"}', "bad_utf8"
        yield f"{name}_first.jsonl", *lines(entry, good(), good())
        yield f"{name}_middle.jsonl", *lines(good(), entry, good())
        yield f"{name}_last.jsonl", *lines(good(), good(), entry, end=b"")
    unused = b'{"instruction": "q", "output": "a", "unused": "\xff"}', "bad_utf8"
    yield "bad_byte_in_unused_field.jsonl", *lines(good(), unused, good())
    yield "bad_byte_alone.jsonl", *lines(good(), (b"\xff", "bad_utf8"), good())
    yield "binary.jsonl", bytes(range(256)) * 4, undecodable(bytes(range(256)) * 4)
    yield "png.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ["bad_utf8", "bad_json", "bad_json"]
    yield "zip.jsonl", b"PK\x03\x04\x14\0\0\0\x08\0", ["bad_json"]


def marks() -> Made:
    """A byte order mark at the start is no text; anywhere else it is no JSON."""
    data, outcomes = lines(good(), good())
    yield "mark.jsonl", BOM + data, outcomes
    data, outcomes = lines(good(), good(), mark=b"\r\n", end=b"")
    yield "mark_crlf.jsonl", BOM + data, outcomes
    data, (_, second) = lines(good(), good())
    yield "mark_twice.jsonl", BOM * 2 + data, ["bad_json", second]
    yield "mark_in_the_middle.jsonl", *lines(good(), (BOM + good()[0], "bad_json"), good())
    data, outcomes = array(good(), good())
    yield "mark.json", BOM + data, outcomes
    data, outcomes = array(good(), good())
    yield "mark_and_blanks.json", BOM + b" \r\n\t\n" + data, outcomes
    data, outcomes = array(good(), good())
    yield "mark_twice.json", BOM * 2 + data, ["bad_json", "bad_json"]
    data, outcomes = lines(good())
    yield "mark_and_blank_line.jsonl", BOM + b"\n" + data, ["blank", *outcomes]
    yield "mark_in_text.jsonl", *lines(row(f"\ufeffa{unique()}", "\ufeffb\ufeff"), good())


def sizes() -> Made:
    """Rows too long to train on are named, and cost the memory of one row."""
    long, huge = "x y " * 6000, "x" * (17 * MEBIBYTE)
    yield "long.jsonl", *lines(good(), (row("q", long)[0], "too_long"), good())
    yield "longer.jsonl", *lines(good(), (row("q", long * 20)[0], "too_long"), good())
    yield "long_prompt.jsonl", *lines(good(), (row(long, "a")[0], "too_long"), good())
    yield (
        "long_unused.jsonl",
        *lines(good(), (js({"instruction": "q long", "output": "a", "unused": long * 50}), ("q long", "a"))),
    )
    yield "long_blank.jsonl", *lines(good(), (b" " * 500_000, "blank"), good())
    for name, make in {"huge.jsonl.gz": lines, "huge.json.gz": array}.items():
        data, outcomes = make(good(), (js({"instruction": huge, "output": "a"}), "too_large"), good())
        yield name, gzip.compress(data, 1, mtime=0), outcomes
    data, outcomes = lines(good(), (b"x" * (17 * MEBIBYTE), "too_large"), end=b"")
    yield "huge_last.jsonl.gz", gzip.compress(data, 1, mtime=0), outcomes
    many = ", ".join(f'"k{number}": 0' for number in range(60_000))
    twice = '{"instruction": "q", "output": "a", ' + many + ', "k59999": 1}'
    yield "many_keys_last_twice.jsonl", *between(twice, "duplicate_key")
    yield "many_keys.jsonl", *between('{"instruction": "q@", "output": "a", ' + many + "}", ("q@", "a"))


def enormous(size: int = 100_000_000) -> Case:
    """One line of 100 MB between two sound ones; not among `cases`, for the time that it takes."""
    data, outcomes = lines(good(), (js({"instruction": "q", "output": "x" * size}), "too_large"), good())
    return Case("enormous.jsonl", data, tuple(outcomes))


# --- rows: sound JSON whose content is wrong, or only looks wrong ---


def talk(*turns: str, **more: Any) -> str:
    """An OpenAI row of "role: content" turns."""
    messages = [{"role": role, "content": content} for role, content in (turn.split(":", 1) for turn in turns)]
    return json.dumps({"messages": messages} | more)


def calling(arguments: Any, **more: Any) -> str:
    """An OpenAI row with one tool call."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "q@"}, {"role": "assistant", "content": None, "tool_calls": [call]} | more,
        {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"},
    ]  # fmt: skip
    return json.dumps({"messages": turns})


def shared(*turns: str) -> str:
    """A ShareGPT row of "from: value" turns."""
    return json.dumps({"conversations": [dict(zip(("from", "value"), turn.split(":", 1), strict=True)) for turn in turns]})  # fmt: skip


def alpaca(**fields: str) -> str:
    """An Alpaca row whose values are given as JSON."""
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"


NUMBERS = {"nan": "NaN", "infinity": "Infinity", "minus_infinity": "-Infinity", "minus_zero": "-0", "huge": "1" * 400,
           "enormous": "1" * 5000, "overflow": "1e999", "float": "1.5", "int": "7"}  # fmt: skip
VALUES = NUMBERS | {
    "true": "true",
    "false": "false",
    "null": "null",
    "list": '["a"]',
    "object": '{"a": "b"}',
    "empty_list": "[]",
}


def semantics() -> Made:
    """Each row between sound ones, as a line and as an element."""
    for name, (text, outcome) in rows().items():
        yield f"{name}.jsonl", *between(text, outcome)
        data = array(good(), fresh(text, outcome), good())
        yield f"{name}.json", *data


def rows() -> dict[str, tuple[str, Outcome]]:
    """Name → a row of sound JSON, and its outcome; `@` becomes a number."""
    found: dict[str, tuple[str, Outcome]] = {}
    for name, value in VALUES.items():
        found[f"output_{name}"] = alpaca(instruction='"q"', output=value), "wrong_type"
        found[f"unused_{name}"] = alpaca(instruction='"q@"', output='"a"', unused=value), ("q@", "a")
        if name != "null":
            found[f"input_{name}"] = alpaca(instruction='"q"', input=value, output='"a"'), "wrong_type"
    for value in ("null", "1", '"text"', "[]", "true", "NaN", '[{"instruction": "a", "output": "b"}]'):
        found[f"no_object_{len(found)}"] = value, "not_an_object"
    return found | ROWS | conversations() | tools() | controls()


ROWS: dict[str, tuple[str, Outcome]] = {
    "empty_object": ("{}", "missing_instruction"),
    "no_instruction": ('{"output": "a"}', "missing_instruction"),
    "no_output": ('{"instruction": "q"}', "missing_output"),
    "no_completion": ('{"prompt": "q"}', "missing_completion"),
    "key_case": ('{"Instruction": "q", "Output": "a"}', "missing_instruction"),
    "key_space": ('{"instruction ": "q", "output": "a"}', "missing_instruction"),
    "key_mark": ('{"\\ufeffinstruction": "q", "output": "a"}', "missing_instruction"),
    "input_space": ('{"instruction": "q", "input ": "c", "output": "a"}', "unclear_key"),
    "input_case": ('{"instruction": "q@", "Input": "c", "output": "a"}', ("q@\nc", "a")),
    "input_mark": ('{"instruction": "q", "\\ufeffinput": "c", "output": "a"}', "unclear_key"),
    "input_zero_width": ('{"instruction": "q", "in\\u200bput": "c", "output": "a"}', "unclear_key"),
    "input_wide": ('{"instruction": "q", "ｉｎｐｕｔ": "c", "output": "a"}', "unclear_key"),
    "input_twice_near": ('{"instruction": "q", "input": "c", "INPUT": "d", "output": "a"}', "unclear_key"),
    "input_space_empty": ('{"instruction": "q@", "input ": "", "output": "a"}', ("q@", "a")),
    "system_case": ('{"instruction": "q@", "output": "a", "System": "s"}', ("s", "q@", "a")),
    "tools_case": ('{"instruction": "q@", "output": "a", "Tools": [{"name": "f"}]}', ("q@", "a")),
    "other_names_among_ours": ('{"query": "q", "response": "a"}', "missing_instruction"),
    "preference": ('{"prompt": "q", "chosen": "a", "rejected": "b"}', "preference_pair"),
    "preference_of_turns": ('{"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}', "preference_pair"),
    "kto_bad": ('{"prompt": "q", "completion": "a", "label": false}', "marked_untrained"),
    "kto_bad_in_words": ('{"prompt": "q", "completion": "a", "label": "False"}', "marked_untrained"),
    "kto_good": ('{"prompt": "q@", "completion": "a", "label": true}', ("q@", "a")),
    "kto_tag": ('{"instruction": "q", "output": "a", "kto_tag": false}', "marked_untrained"),
    "label_of_a_class": ('{"instruction": "q@", "output": "a", "label": "false"}', ("q@", "a")),
    "label_number": ('{"instruction": "q@", "output": "a", "label": 0}', ("q@", "a")),
    "row_weight": ('{"instruction": "q", "output": "a", "weight": 0}', "marked_untrained"),
    "row_train": ('{"instruction": "q", "output": "a", "train": false}', "marked_untrained"),
    "images_case": ('{"instruction": "q", "output": "a", "Images": ["a.png"]}', "not_text"),
    "empty_answer": ('{"instruction": "q", "output": ""}', "empty_answer"),
    "blank_answer": ('{"instruction": "q", "output": " \\n\\t\\u3000"}', "empty_answer"),
    "empty_prompt": ('{"instruction": "", "input": "", "output": "a"}', "empty_prompt"),
    "blank_prompt": ('{"instruction": " ", "input": "\\n", "output": "a"}', "empty_prompt"),
    "instruction_null": ('{"instruction": null, "output": "a"}', "wrong_type"),
    "instruction_list": ('{"instruction": ["q"], "output": "a"}', "wrong_type"),
    "input_null": ('{"instruction": "q@", "input": null, "output": "a"}', ("q@", "a")),
    "input_only": ('{"instruction": "", "input": "q@", "output": "a"}', ("q@", "a")),
    "twice": ('{"instruction": "q", "output": "a", "output": "b"}', "duplicate_key"),
    "twice_equal": ('{"instruction": "q", "output": "a", "output": "a"}', "duplicate_key"),
    "twice_escaped": ('{"instruction": "q", "output": "a", "\\u006futput": "b"}', "duplicate_key"),
    "twice_unused": ('{"instruction": "q", "output": "a", "x": 1, "x": 2}', "duplicate_key"),
    "twice_empty": ('{"instruction": "q", "output": "a", "": 1, "": 2}', "duplicate_key"),
    "twice_surrogate": ('{"instruction": "q", "output": "a", "\\ud800": 1, "\\ud800": 2}', "duplicate_key"),
    "twice_nested_unused": ('{"instruction": "q@", "output": "a", "meta": {"x": 1, "x": 2}}', ("q@", "a")),
    "nul_instruction": ('{"instruction": "q\\u0000", "output": "a"}', "nul_character"),
    "nul_input": ('{"instruction": "q", "input": "\\u0000", "output": "a"}', "nul_character"),
    "nul_output": ('{"instruction": "q", "output": "\\u0000"}', "nul_character"),
    "nul_system": ('{"instruction": "q", "output": "a", "system": "s\\u0000"}', "nul_character"),
    "nul_unused": ('{"instruction": "q@", "output": "a", "x": "\\u0000", "\\u0000": 1}', ("q@", "a")),
    "surrogate_high": ('{"instruction": "q", "output": "a\\ud83d"}', "lone_surrogate"),
    "surrogate_low": ('{"instruction": "q", "output": "\\ude00a"}', "lone_surrogate"),
    "surrogates_turned": ('{"instruction": "q", "output": "\\ude00\\ud83d"}', "lone_surrogate"),
    "surrogate_dc80": ('{"instruction": "q", "output": "\\udc80"}', "lone_surrogate"),
    "surrogate_prompt": ('{"instruction": "\\ud800", "output": "a"}', "lone_surrogate"),
    "surrogate_input": ('{"instruction": "q", "input": "\\udfff", "output": "a"}', "lone_surrogate"),
    "surrogate_unused": ('{"instruction": "q@", "output": "a", "\\ud800": "\\udfff"}', ("q@", "a")),
    "surrogate_pair": ('{"instruction": "q@", "output": "\\ud83d\\ude00"}', ("q@", "😀")),
    "history": (
        '{"instruction": "q@", "output": "a", "history": [["b", "c"], ["d", "e"]]}', ("b", "c", "d", "e", "q@", "a"),
    ),
    "history_empty": ('{"instruction": "q@", "output": "a", "history": []}', ("q@", "a")),
    "history_null": ('{"instruction": "q@", "output": "a", "history": null}', ("q@", "a")),
    "history_text": ('{"instruction": "q", "output": "a", "history": "so far"}', "bad_json"),
    "history_triple": ('{"instruction": "q", "output": "a", "history": [["b", "c", "d"]]}', "wrong_type"),
    "history_object": ('{"instruction": "q", "output": "a", "history": {"b": "c"}}', "wrong_type"),
    "history_number": ('{"instruction": "q", "output": "a", "history": [["b", 1]]}', "wrong_type"),
    "history_empty_answer": ('{"instruction": "q", "output": "a", "history": [["b", ""]]}', "empty_answer"),
    "history_empty_prompt": ('{"instruction": "q", "output": "a", "history": [["", "b"]]}', "empty_prompt"),
    "system": ('{"instruction": "q@", "output": "a", "system": "s"}', ("s", "q@", "a")),
    "system_empty": ('{"instruction": "q@", "output": "a", "system": ""}', ("q@", "a")),
    "system_number": ('{"instruction": "q", "output": "a", "system": 1}', "wrong_type"),
    "image": ('{"instruction": "q", "output": "a", "image": "a.png"}', "not_text"),
    "images": ('{"instruction": "q", "output": "a", "images": ["a.png"]}', "not_text"),
    "images_empty": ('{"instruction": "q@", "output": "a", "images": []}', ("q@", "a")),
    "videos": ('{"instruction": "q", "output": "a", "videos": ["a.mp4"]}', "not_text"),
    "pair": ('{"prompt": "q@", "completion": "a"}', ("q@", "a")),
    "pair_null": ('{"prompt": "q", "completion": null}', "wrong_type"),
    "pair_empty": ('{"prompt": "q", "completion": ""}', "empty_answer"),
    "pair_number": ('{"prompt": 1, "completion": "a"}', "wrong_type"),
    "pair_half_list": ('{"prompt": [{"role": "user", "content": "q"}], "completion": "a"}', "wrong_type"),
    "pair_lists": (
        '{"prompt": [{"role": "user", "content": "q@"}], "completion": [{"role": "assistant", "content": "a"}]}', ("q@", "a"),
    ),
    "garbled_replaced": ('{"instruction": "q", "output": "caf\ufffd"}', "garbled"),
    "garbled_gbk": ('{"instruction": "q", "output": "锟斤拷锟斤拷"}', "garbled"),
    "garbled_latin": ('{"instruction": "q", "output": "schÃ¶n und groÃŸ"}', "garbled"),
    "garbled_questions": ('{"instruction": "q", "output": "????????"}', "garbled"),
    "garbled_prompt_is_kept": ('{"instruction": "What is wrong with schÃ¶n \ufffd @?", "output": "a"}', ("What is wrong with schÃ¶n \ufffd @?", "a")),
    "deep_unused": ('{"instruction": "q@", "output": "a", "x": ' + "[" * 500 + "]" * 500 + "}", ("q@", "a")),
    "deep_output": ('{"instruction": "q", "output": ' + "[" * 500 + "]" * 500 + "}", "wrong_type"),
}  # fmt: skip


def conversations() -> dict[str, tuple[str, Outcome]]:
    """Turns in OpenAI's and ShareGPT's layout."""
    both = '"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a"}]'
    return {
        "talk": (talk("user:q@", "assistant:a"), ("q@", "a")),
        "talk_long": (talk("system:s", "user:q@", "assistant:a", "user:b", "assistant:c"), ("s", "q@", "a", "b", "c")),
        "talk_empty": ('{"messages": []}', "no_last_answer"),
        "talk_null": ('{"messages": null}', "missing_instruction"),
        "talk_object": ('{"messages": {"role": "user", "content": "q"}}', "wrong_type"),
        "talk_number": ('{"messages": 1}', "wrong_type"),
        "talk_text": ('{"messages": "hello"}', "bad_json"),
        "talk_as_text": (json.dumps({"messages": json.dumps([{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a"}])}), ("q@", "a")),
        "talk_of_texts": ('{"messages": ["q", "a"]}', "wrong_type"),
        "talk_of_lists": ('{"messages": [["user", "q"], ["assistant", "a"]]}', "wrong_type"),
        "talk_with_null": ('{"messages": [null]}', "wrong_type"),
        "no_role": ('{"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]}', "unknown_role"),
        "role_case": (talk("User:q", "Assistant:a"), "unknown_role"),
        "role_space": (talk("user :q", "assistant:a"), "unknown_role"),
        "role_unknown": (talk("narrator:q", "assistant:a"), "unknown_role"),
        "role_number": ('{"messages": [{"role": 1, "content": "q"}]}', "unknown_role"),
        "role_list": ('{"messages": [{"role": ["user"], "content": "q"}]}', "unknown_role"),
        "role_object": ('{"messages": [{"role": {"a": 1}, "content": "q"}]}', "unknown_role"),
        "role_null": ('{"messages": [{"role": null, "content": "q"}]}', "unknown_role"),
        "role_surrogate": ('{"messages": [{"role": "\\ud800", "content": "q"}]}', "unknown_role"),
        "role_nul": ('{"messages": [{"role": "user\\u0000", "content": "q"}]}', "unknown_role"),
        "role_control_token": (talk("<|im_end|>:q", "assistant:a"), "unknown_role"),
        "no_content": ('{"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}', "missing_content"),
        "content_null": ('{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "a"}]}', "wrong_type"),
        "content_number": ('{"messages": [{"role": "user", "content": 1}, {"role": "assistant", "content": "a"}]}', "wrong_type"),
        "content_object": ('{"messages": [{"role": "user", "content": {"text": "q"}}, {"role": "assistant", "content": "a"}]}', "wrong_type"),
        "content_parts": ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "q@"}, {"type": "text", "text": "r"}]}, {"role": "assistant", "content": "a"}]}', ("q@\nr", "a")),
        "content_part_cached": ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "q@", "cache_control": {"type": "ephemeral"}, "id": "p"}]}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]}', ("q@", "no")),
        "content_part_control": ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "q<|im_"}, {"type": "text", "text": "end|>"}]}, {"role": "assistant", "content": [{"type": "text", "text": "a<|im_end|>"}]}]}', "control_token"),
        "content_parts_and_image": ('{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image_url", "image_url": {"url": "a"}}]}, {"role": "assistant", "content": "a"}]}', "not_text"),
        "content_part_thought": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "a"}]}]}', "not_text"),
        "content_image": ('{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}, {"role": "assistant", "content": "a"}]}', "not_text"),
        "content_empty_list": ('{"messages": [{"role": "user", "content": []}, {"role": "assistant", "content": "a"}]}', "not_text"),
        "images_in_turn": ('{"messages": [{"role": "user", "content": "q", "images": ["a.png"]}, {"role": "assistant", "content": "a"}]}', "not_text"),
        "answer_null": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null}]}', "wrong_type"),
        "turn_twice": ('{"messages": [{"role": "user", "content": "q", "content": "r"}, {"role": "assistant", "content": "a"}]}', "duplicate_key"),
        "turn_role_twice": ('{"messages": [{"role": "user", "role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}', "duplicate_key"),
        "turn_surrogate_twice": ('{"messages": [{"role": "user", "content": "q", "\\udc80": 1, "\\udc80": 2}]}', "duplicate_key"),
        "turn_nested_twice_unused": ('{"messages": [{"role": "user", "content": "q@", "meta": {"x": 1, "x": 2}}, {"role": "assistant", "content": "a"}]}', ("q@", "a")),
        "turn_empty": ('{"messages": [{}, {"role": "assistant", "content": "a"}]}', "unknown_role"),
        "answer_first": (talk("assistant:a", "user:q", "assistant:b"), "bad_turn_order"),
        "two_users": (talk("user:q", "user:r", "assistant:a"), "bad_turn_order"),
        "two_answers": (talk("user:q", "assistant:a", "assistant:b"), "bad_turn_order"),
        "system_middle": (talk("user:q", "assistant:a", "system:s", "user:r", "assistant:b"), "bad_turn_order"),
        "system_last": (talk("user:q", "assistant:a", "system:s"), "bad_turn_order"),
        "two_systems": (talk("system:s", "system:t", "user:q", "assistant:a"), "bad_turn_order"),
        "system_beside": (talk("user:q@", "assistant:a", system="s"), ("s", "q@", "a")),
        "system_twice": (talk("system:s", "user:q", "assistant:a", system="t"), "two_system_messages"),
        "only_system": (talk("system:s"), "no_last_answer"),
        "only_user": (talk("user:q"), "no_last_answer"),
        "only_answer": (talk("assistant:a"), "bad_turn_order"),
        "ends_with_user": (talk("user:q", "assistant:a", "user:r"), "no_last_answer"),
        "system_then_answer": (talk("system:s", "assistant:a"), "bad_turn_order"),
        "tool_first": (talk("tool:r", "assistant:a"), "bad_turn_order"),
        "tool_without_call": (talk("user:q", "tool:r", "assistant:a"), "bad_turn_order"),
        "turn_empty_answer": (talk("user:q", "assistant:", "user:r", "assistant:b"), "empty_answer"),
        "turn_blank_prompt": (talk("user: ", "assistant:a"), "empty_prompt"),
        "turn_nul": (talk("user:q\0", "assistant:a"), "nul_character"),
        "turn_surrogate": (talk("user:q", "assistant:\ud800"), "lone_surrogate"),
        "weight_zero": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a", "weight": 0}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c", "weight": 1}]}', ("q@", "a", "b", "c")),
        "weight_zero_alone": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}', "nothing_to_train"),
        "loss_false": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a", "loss": false}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c", "loss": true}]}', ("q@", "a", "b", "c")),
        "loss_false_alone": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": false}]}', "nothing_to_train"),
        "train_false_alone": ('{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "train": false}]}', "nothing_to_train"),
        "loss_in_words": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": "false"}]}', "unclear_mark"),
        "loss_and_weight": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss": false, "weight": 1}]}', "unclear_mark"),
        "loss_scale_half": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss_scale": 0.5}]}', "unclear_mark"),
        "train_detail": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": false}]}]}', "unclear_mark"),
        "loss_case": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "Loss": false}]}', "unclear_key"),
        "content_case": ('{"messages": [{"role": "user", "Content": "q"}, {"role": "assistant", "content": "a"}]}', "missing_content"),
        "weight_null": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a", "weight": null}]}', ("q@", "a")),
        "messages_and_images": ("{" + both + ', "images": ["a.png"]}', "not_text"),
        "messages_and_alpaca": ("{" + both + ', "instruction": null, "output": null}', ("q@", "a")),
        "shared": (shared("human:q@", "gpt:a"), ("q@", "a")),
        "shared_long": (shared("system:s", "human:q@", "gpt:a", "human:b", "gpt:c"), ("s", "q@", "a", "b", "c")),
        "shared_empty": ('{"conversations": []}', "no_last_answer"),
        "shared_null": ('{"conversations": null}', "missing_instruction"),
        "shared_case": (shared("Human:q", "GPT:a"), "unknown_role"),
        "shared_no_value": ('{"conversations": [{"from": "human"}, {"from": "gpt", "value": "a"}]}', "missing_value"),
        "shared_answer_first": (shared("gpt:a", "human:q", "gpt:b"), "bad_turn_order"),
        "shared_ends_with_human": (shared("human:q", "gpt:a", "human:b"), "no_last_answer"),
        "shared_value_null": ('{"conversations": [{"from": "human", "value": null}, {"from": "gpt", "value": "a"}]}', "wrong_type"),
        "shared_value_list": ('{"conversations": [{"from": "human", "value": ["q"]}, {"from": "gpt", "value": "a"}]}', "wrong_type"),
    }  # fmt: skip


def tools() -> dict[str, tuple[str, Outcome]]:
    """Calls and descriptions of tools, of which no key and no number may be lost."""
    tool = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    kept = "q@", "", "r", "a"
    deep = "[" * 500 + "]" * 500
    found: dict[str, tuple[str, Outcome]] = {
        "call": (calling('{"x": 1}'), kept),
        "call_object": (calling({"x": 1}), kept),
        "call_no_arguments": (calling({}), kept),
        "call_thought": (calling('{"x": 1}', reasoning_content="t"), kept),
        "call_broken": (calling('{"x": '), "bad_tool_call"),
        "call_empty_text": (calling(""), "bad_tool_call"),
        "call_list": (calling("[1]"), "bad_tool_call"),
        "call_number": (calling(1), "bad_tool_call"),
        "call_null": (calling(None), "bad_tool_call"),
        "call_nan": (calling('{"x": NaN}'), "bad_tool_call"),
        "call_overflow": (calling('{"x": [1e999]}'), "bad_tool_call"),
        "call_enormous": (calling('{"x": ' + "1" * 5000 + "}"), "bad_tool_call"),
        "call_huge": (calling('{"x": ' + "1" * 400 + "}"), kept),
        "call_twice": (calling('{"x": 1, "x": 2}'), "duplicate_key"),
        "call_twice_empty": (calling('{"": 1, "": 2}'), "duplicate_key"),
        "call_twice_nested": (calling('{"x": {"y": 1, "y": 2}}'), "duplicate_key"),
        "call_twice_in_list": (calling('{"x": [{"y": 1, "y": 2}]}'), "duplicate_key"),
        "call_name_twice": (calling("{}").replace('"name": "f"', '"name": "f", "name": "g"'), "duplicate_key"),
        "call_object_twice": (calling({"x": 1}).replace('"x": 1', '"x": 1, "x": 2'), "duplicate_key"),
        "call_function_twice": (calling("{}").replace('"type": "function"', '"function": {"name": "g"}'), "duplicate_key"),
        "call_deep": (calling('{"x": ' + deep + "}"), "bad_tool_call"),
        "call_deep_object": (calling("DEEP").replace('"DEEP"', '{"x": ' + deep + "}"), "bad_tool_call"),
        "call_endless": (calling("[" * 100_000), "bad_tool_call"),
        "call_nul": (calling('{"x": "\\u0000"}'), "nul_character"),
        "call_nul_key": (calling('{"\\u0000": 1}'), "nul_character"),
        "call_surrogate": (calling('{"x": "\\ud800"}'), "lone_surrogate"),
        "call_surrogate_key": (calling({"\ud800": 1}), "lone_surrogate"),
        "call_surrogate_twice": (calling('{"\\ud800": 1, "\\ud800": 1}'), "duplicate_key"),
        "call_no_name": (calling("{}").replace('"name": "f", ', ""), "bad_tool_call"),
        "call_name_number": (calling("{}").replace('"name": "f"', '"name": 1'), "bad_tool_call"),
        "calls_empty": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": []}]}', "empty_answer"),
        "calls_empty_text": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": "[]"}]}', "empty_answer"),
        "calls_no_content": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": "[]"}]}', "missing_content"),
        "calls_of_texts": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": ["f"]}]}', "bad_tool_call"),
        "calls_of_null": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [null]}]}', "bad_tool_call"),
        "calls_object": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": {"name": "f"}}]}', "wrong_type"),
        "calls_function_null": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"function": null}]}]}', "bad_tool_call"),
        "calls_of_user": ('{"messages": [{"role": "user", "content": "q", "tool_calls": [{"name": "f", "arguments": {}}]}, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "a"}]}', "bad_tool_call"),
        "call_then_user": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}, {"role": "user", "content": "r"}, {"role": "assistant", "content": "a"}]}', "bad_turn_order"),
        "call_last": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}]}', ("q@", "")),
        "older_call": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "I look.", "function_call": {"name": "f", "arguments": "{\\"x\\": 1}"}}, {"role": "function", "name": "f", "content": "r"}, {"role": "assistant", "content": "a"}], "functions": [{"name": "f", "parameters": {}}]}', ("q@", "I look.", "r", "a")),
        "older_call_broken": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "function_call": {"name": "f", "arguments": "{"}}]}', "bad_tool_call"),
        "older_call_text": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "function_call": "auto"}]}', "bad_tool_call"),
        "older_call_null": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "b", "function_call": null}]}', ("q@", "b")),
        "older_call_of_user": ('{"messages": [{"role": "user", "content": "q", "function_call": {"name": "f", "arguments": "{}"}}, {"role": "assistant", "content": "b"}]}', "bad_tool_call"),
        "older_call_and_calls": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "tool_calls": [{"name": "f", "arguments": {}}], "function_call": {"name": "f", "arguments": "{}"}}]}', "bad_tool_call"),
        "older_call_control": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "function_call": {"name": "f", "arguments": "{\\"x\\": \\"<|im_end|>\\"}"}}]}', "control_token"),
        "tool_defs": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a"}], "tools": null, "tool_defs": [{"name": "f"}]}', ("q@", "a")),
        "tool_defs_differ": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": [{"name": "f"}], "tool_defs": [{"name": "g"}]}', "bad_tools"),
        "tool_defs_control": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tool_defs": [{"name": "f", "description": "<|im_end|>"}]}', "control_token"),
        "thought": ('{"messages": [{"role": "user", "content": "q@"}, {"role": "assistant", "content": "a", "reasoning_content": "t"}]}', ("q@", "a")),
        "thought_number": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": 1}]}', "wrong_type"),
        "thought_surrogate": ('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "\\ud800"}]}', "lone_surrogate"),
        "name_number": ('{"messages": [{"role": "user", "content": "q", "name": 1}, {"role": "assistant", "content": "a"}]}', "wrong_type"),
        "shared_call": (shared("human:q@", 'function_call:{"name": "f", "arguments": {"x": 1}}', "observation:r", "gpt:a"), kept),
        "shared_calls": (shared("human:q@", 'function_call:[{"name": "f", "arguments": "{}"}]', "observation:r", "gpt:a"), kept),
        "shared_call_broken": (shared("human:q", "function_call:f(1)", "observation:r", "gpt:a"), "bad_tool_call"),
        "shared_call_none": (shared("human:q", "function_call:[]"), "bad_tool_call"),
        "shared_call_text": (shared("human:q", 'function_call:["f"]'), "bad_tool_call"),
        "shared_call_null": (shared("human:q", "function_call:null"), "bad_tool_call"),
        "shared_call_twice": (shared("human:q", 'function_call:{"name": "f", "name": "g"}'), "duplicate_key"),
        "shared_call_deep": (shared("human:q", 'function_call:{"name": "f", "arguments": {"x": ' + deep + "}}"), "bad_tool_call"),
    }  # fmt: skip
    for name, value, outcome in (
        ("list", [tool], ("q@", "a")), ("openai", [{"type": "function", "function": tool}], ("q@", "a")),
        ("text", json.dumps([tool]), ("q@", "a")), ("none", [], ("q@", "a")), ("null", None, ("q@", "a")),
        ("blank", " ", ("q@", "a")), ("object", tool, "bad_tools"), ("broken", "[{", "bad_tools"), ("number", 0, "bad_tools"),
        ("of_texts", ["f"], "bad_tools"), ("of_null", [None], "bad_tools"), ("nul", [{"name": "f\0"}], "nul_character"),
        ("surrogate", [{"name": "f", "\udc80": 1}], "lone_surrogate"), ("nan", '[{"name": "f", "x": NaN}]', "bad_tools"),
        ("twice", '[{"name": "f", "name": "g"}]', "duplicate_key"), ("deep", '[{"name": "f", "x": ' + deep + "}]", "bad_tools"),
        ("endless", "[" * 100_000, "bad_tools"),
    ):  # fmt: skip
        found[f"tools_{name}"] = talk("user:q@", "assistant:a", tools=value), outcome
    nested = talk("user:q", "assistant:a", tools=[{"name": "f", "parameters": {"x": 1}}])
    found["tools_nested_twice"] = nested.replace('"x": 1', '"x": 1, "x": 2'), "duplicate_key"
    found["tools_infinity"] = nested.replace('"x": 1', '"x": Infinity'), "bad_tools"
    return found


def controls() -> dict[str, tuple[str, Outcome]]:
    """A control token in a text would end a turn; in a field that is not used it does nothing."""
    end, tool = "<|im_end|>", [{"name": "f", "description": "<|im_start|>"}]
    fields = ("instruction", "input", "output", "system")
    base = dict.fromkeys(fields, "x")
    found: dict[str, tuple[str, Outcome]] = {
        f"control_{name}": (json.dumps(base | {name: f"say {end} now"}), "control_token") for name in fields
    }
    return found | {
        "control_escaped": ('{"instruction": "q", "output": "\\u003c|im_end|\\u003e"}', "control_token"),
        "control_start": ('{"instruction": "q", "output": "<|im_start|>user"}', "control_token"),
        "control_end_of_text": ('{"instruction": "q", "output": "a<|endoftext|>"}', "control_token"),
        "control_history": (json.dumps({"instruction": "q", "output": "a", "history": [["b", end]]}), "control_token"),
        "control_unused": (json.dumps({"instruction": "q@", "output": "a", "x": end}), ("q@", "a")),
        "control_half": ('{"instruction": "q@ <|im_end|", "output": "<|im_end |>"}', ("q@ <|im_end|", "<|im_end |>")),
        "control_prompt": (json.dumps({"prompt": end, "completion": "a"}), "control_token"),
        "control_turn": (talk("user:q", f"assistant:{end}"), "control_token"),
        "control_shared": (shared(f"human:{end}", "gpt:a"), "control_token"),
        "control_arguments": (calling(json.dumps({"x": end})), "control_token"),
        "control_argument_name": (calling(json.dumps({end: 1})), "control_token"),
        "control_call_name": (calling("{}").replace('"name": "f"', f'"name": "{end}"'), "control_token"),
        "control_thought": (calling("{}", reasoning_content=end), "control_token"),
        "control_tools": (talk("user:q", "assistant:a", tools=tool), "control_token"),
        "control_untrained": (
            '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<|im_end|>", "weight": 0}, '
            '{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}', "control_token",
        ),
    }  # fmt: skip


# --- sound text that programs like to change ---

TEXTS = {
    "date": "2024-01-01", "time": "2024-01-01T00:00:00Z", "number": "007", "float": "1.0", "exponent": "1e5", "true": "true", "null": "null",
    "nan": "NaN", "json": '{"a": 1,  "b": [1, 2]}', "nfc": "é Å 한", "nfd": "e\u0301 A\u030a 한", "compatible": "ﬁ Ａ１ ① ㎏ ｶﾞ",
    "zero_width": "a\u200bb\u200c\u200d\u2060c", "right_to_left": "שלום \u202bعربي\u202c \u200f!", "joined": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "flags": "🇩🇪🇨🇳", "crlf": "a\r\nb\rc\n\nd", "spaces": "  a  b \t ", "newlines": "\n\na\n\n", "script": "</script><!-- <b> &amp; ]]>",
    "quotes": "“a” ‘b’ «c» \"d\" 'e'", "backslashes": "C:\\new\\table \\n \\u0041", "template": "{{ 7 * 7 }} {% if x %} {# c #} ${x} %s %d",
    "controls": "a\x01\x07\x08\x0b\x0c\x1b[31m\x7f", "separators": "a\u2028b\u2029c\x1cd\x1ee", "no_break": "a\u00a0b\u202f\u3000c",
    "private": "\ue000\uf8ff", "noncharacter": "\ufdd0\uffff\U0010ffff", "plane_two": "𠀀𪛖", "combining": "Z" + "\u0301\u0316" * 20,
    "soft_hyphen": "co\u00adop", "tags": "<tool_call>{}</tool_call> <think>x</think> [INST] <s>", "markdown": "# a\n\n```py\nx = 1  \n```\n",
    "sql": "Robert'); DROP TABLE students;--", "formula": "=1+1", "tabs": "\ta\tb", "percent": "100 % of $x^2$", "chinese": "「甄嬛」：臣妾做不到啊！……——",
    "mixed_scripts": "Ελλάδα Россия ไทย हिन्दी 日本 カナ", "turkish": "İıŞş ǅ ß ẞ", "accents": "naïve café über Ærø œuvre",
}  # fmt: skip


def sound() -> Made:
    """Text that must arrive byte for byte, in each container."""
    for name, text in TEXTS.items():
        entries = [row(f"{text} {unique()}", text), row(f"{unique()} {text}", f"{text}|{text}")]
        yield f"sound_{name}.jsonl", *lines(*entries)
    every = [row(f"{text}#{unique()}", text) for text in TEXTS.values()]
    yield "sound.json", *array(*every)
    escaped = [
        (json.dumps({"instruction": f"{text}&{unique()}", "output": text}).encode(), text) for text in TEXTS.values()
    ]
    yield (
        "sound_escaped.jsonl",
        b"\n".join(data for data, _ in escaped),
        [(json.loads(data)["instruction"], text) for data, text in escaped],
    )
    talks = [(f"{text}+{unique()}", text) for text in TEXTS.values()]
    values = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in talks]
    yield "sound_talk.jsonl", b"\n".join(map(js, values)), talks
    pairs = [(f"{text}~{unique()}", text) for text in TEXTS.values()]
    yield "sound.csv", csv(("instruction", "output"), *pairs), pairs
    pairs = [(f"{text}={unique()}", text) for text in TEXTS.values()]
    yield "sound.parquet", parquet({"instruction": [q for q, _ in pairs], "output": [a for _, a in pairs]}), pairs


# --- JSON arrays ---


def arrays() -> Made:
    """What breaks an array costs what follows; what is wrong in one element costs that element."""
    yield "array.json", *array(good(), good())
    yield "array_in.jsonl", *array(good(), good())
    yield "array_empty.json", b"[]", []
    yield "array_empty_spaced.json", b" [ \n ] \n", []
    data, outcomes = array(good(), good())
    yield "array_crlf.json", data.replace(b"\n", b"\r\n") + b"\r\n", outcomes
    data, outcomes = array(good(), good())
    yield "array_one_line.json", data.replace(b"\n", b""), outcomes
    data, outcomes = array(good(), good())
    yield "array_indented.json", json.dumps(json.loads(data), indent=4).encode(), outcomes
    yield "array_of_scalars.json", b'[1, "a", null, true, 1.5, -0, NaN]', ["not_an_object"] * 7
    nested, _ = array(good())
    yield "array_nested.json", *array(good(), (nested, "not_an_object"), good())
    yield "array_around_array.json", b"[" + nested + b"]", ["not_an_object"]
    for name, bad in {"latin": b"\xe9", "overlong": b"\xc0\x80", "cesu": b"\xed\xa0\x80", "cut": b"\xe4\xbd"}.items():
        entry = b'{"instruction": "q' + bad + b'", "output": "a"}', "bad_utf8"
        yield f"array_{name}.json", *array(good(), entry, good())
        yield f"array_{name}_first.json", *array(entry, good())
        yield f"array_{name}_last.json", *array(good(), entry)
    a, b = good(), good()
    for name, data, count in (
        ("missing_comma", b"[" + a[0] + b" " + b[0] + b"]", 1), ("two_commas", b"[" + a[0] + b",," + b[0] + b"]", 1),
        ("trailing_comma", b"[" + a[0] + b"," + b[0] + b",]", 2), ("first_comma", b"[," + a[0] + b"]", 0),
        ("text_after", b"[" + a[0] + b"," + b[0] + b"] x", 2), ("array_after", b"[" + a[0] + b"][" + b[0] + b"]", 1),
        ("object_after", b"[" + a[0] + b"]\n" + b[0] + b"\n", 1), ("nul_after", b"[" + a[0] + b"]\0", 1),
        ("bracket_after", b"[" + a[0] + b"]]", 1), ("unclosed", b"[" + a[0] + b"," + b[0], 2), ("only_open", b"[", 0),
        ("open_and_blanks", b"[ \n\n", 0), ("unclosed_comma", b"[" + a[0] + b",", 1), ("wrong_close", b"[" + a[0] + b"}", 1),
        ("cut_element", b"[" + a[0] + b"," + b[0][:-5], 1), ("cut_first", b"[" + a[0][:9], 0), ("cut_brace", b"[" + a[0] + b",{", 1),
        ("cut_key", b"[" + a[0] + b',{"instr', 1), ("cut_colon", b"[" + a[0] + b',{"instruction":', 1), ("cut_escape", b"[" + a[0] + b',{"instruction": "\\', 1),
        ("cut_character", b"[" + a[0] + b',{"instruction": "\xe4\xbd', 1), ("cut_word", b"[" + a[0] + b",nul", 1),
        ("bad_byte_between", b"[" + a[0] + b",\xff" + b[0] + b"]", 1), ("bad_byte_after", b"[" + a[0] + b"]\xff", 1),
        ("mark_between", b"[" + a[0] + b"," + BOM + b[0] + b"]", 1), ("comment", b"[" + a[0] + b", /* c */ " + b[0] + b"]", 1),
        ("raw_newline", b"[" + a[0] + b',{"instruction": "q\n", "output": "a"}]', 1), ("raw_nul", b"[" + a[0] + b',{"instruction": "q\0", "output": "a"}]', 1),
        ("single_quotes", b"[" + a[0] + b",{'instruction': 'q'}]", 1), ("deep", b"[" + a[0] + b"," + b"[" * 100_000, 1),
        ("no_break_space", b"[" + a[0] + b",\xc2\xa0" + b[0] + b"]", 1), ("form_feed", b"[" + a[0] + b",\f" + b[0] + b"]", 1),
        ("jsonl_of_arrays", b'["a", "b"]\n["c", "d"]\n', 0), ("semicolon", b"[" + a[0] + b";" + b[0] + b"]", 1),
    ):  # fmt: skip
        before: list[Outcome] = [a[1], b[1]][:count] if name != "jsonl_of_arrays" else ["not_an_object"] * 2
        yield f"broken_{name}.json", data, [*before, BROKEN]
    one = good()
    yield "object.json", one[0], [one[1]]
    yield "object_indented.json", *indented(good())
    yield "objects_indented.jsonl", *indented(good(), good(), good())
    yield "objects_indented_mark.json", BOM + indented(entry := good())[0], [entry[1]]
    data, outcomes = indented(good(), good())
    yield "broken_objects_cut.json", data[:-4], [outcomes[0], BROKEN]
    yield "broken_objects_comma.json", data.replace(b"\n}\n{", b"\n},\n{"), [outcomes[0], BROKEN]
    # a first line that is damaged is no object of several lines, whatever follows
    for name, head in {
        "brace": b"{",
        "comma": b'{"instruction": "q",',
        "colon": b'{"output":',
        "list": b'{"x": [',
    }.items():
        yield f"first_line_cut_{name}.jsonl", *lines((head, "bad_json"), good(), good())
    yield from wrappers()
    yield "scalar.json", b"42", ["not_an_object"]
    yield "scalar_text.json", b'"text"\n', ["not_an_object"]
    yield "scalar_null.json", b"null", ["not_an_object"]
    yield "form_feed_first.json", b"\f[1]", ["bad_json"]
    data, outcomes = array(good(), good())
    yield "blanks_first.json", b"\n" * 100_000 + data, outcomes
    data, outcomes = array(*[good() for _ in range(3)])
    yield "element_across_reads.json", data.replace(b",\n", b"," + b" " * MEBIBYTE, 1), outcomes


def indented(*entries: Entry) -> tuple[bytes, list[Outcome]]:
    """Entries as objects on several lines, one after another, and their outcomes."""
    parts = [json.dumps(json.loads(data), indent=2, ensure_ascii=False).encode() for data, _ in entries]
    return b"\n".join(parts) + b"\n", [outcome for _, outcome in entries]


def wrappers() -> Made:
    """All rows under one key of one object."""
    for name, before, after in (
        ("plain", b"", b""), ("version", b'"version": "1.0", "n": 2, "meta": {"by": "x"}, ', b""), ("after", b"", b', "done": true, "list": [1]'),
    ):  # fmt: skip
        data, outcomes = array(good(), good())
        yield f"wrapped_{name}.json", b"{" + before + b'"data": ' + data + after + b"}", outcomes
        data, outcomes = array(good(), good())
        indent = json.dumps(json.loads(b"{" + before + b'"rows": ' + data + after + b"}"), indent=2).encode()
        yield f"wrapped_{name}_indented.json", BOM + indent + b"\n", outcomes
    data, outcomes = array(good(), (b'{"instruction": "q"}', "missing_output"), good())
    yield "wrapped_bad_row.json", b'{"data": ' + data + b"}", outcomes
    train, (first, second) = array(good(), good())
    held_out, _ = array(good())
    yield (
        "broken_wrapped_two_lists.json",
        b'{"data": ' + train + b', "test": ' + held_out + b"}",
        [first, second, BROKEN],
    )
    yield "broken_wrapped_unclosed.json", b'{"data": ' + train, [first, second, BROKEN]
    yield "broken_wrapped_cut.json", b'{\n"data": ' + train[:-8], [first, BROKEN]
    yield "broken_wrapped_more.json", b'{"data": ' + train + b"}\n{}\n]", [first, second, BROKEN]
    line = b'{"data": ' + train.replace(b"\n", b"") + b"}"  # JSONL, whose first line is one row
    yield "wrapped_line_and_more.jsonl", line + b"\n{}\n]\n", ["missing_instruction", "missing_instruction", "bad_json"]
    # rows of JSONL may have such a key: then each line is a row
    entry = fresh('{"data": [{"x": 1}], "instruction": "q@", "output": "a"}', ("q@", "a"))
    yield (
        "rows_with_data.jsonl",
        *lines(entry, fresh('{"data": [{"x": 1}], "instruction": "q@", "output": "a"}', ("q@", "a"))),
    )


# --- CSV ---


def csv(*records: Sequence[str], mark: str = "\n") -> bytes:
    """A table with every field in quotes."""
    return "".join(",".join('"' + text.replace('"', '""') + '"' for text in one) + mark for one in records).encode()


def pair() -> tuple[bytes, tuple[str, ...]]:
    """A sound row of a table, and its texts."""
    number = unique()
    return f"question {number},answer {number}\n".encode(), (f"question {number}", f"answer {number}")


def tables() -> Made:
    """Row n of a table is the n-th after the header."""
    head = b"instruction,output\n"
    for name, change in {
        "plain": lambda d: d, "mark": lambda d: BOM + d, "crlf": lambda d: d.replace(b"\n", b"\r\n"), "cr": lambda d: d.replace(b"\n", b"\r"),
        "no_last_break": lambda d: d[:-1], "quoted": lambda d: d.replace(b"instruction", b'"instruction"'),
    }.items():  # fmt: skip
        a, b = pair(), pair()
        yield f"{name}.csv", change(head + a[0] + b[0]), [a[1], b[1]]
    a, b = pair(), pair()
    yield "tabs.tsv", (head + a[0] + b[0]).replace(b",", b"\t"), [a[1], b[1]]
    a, b = pair(), pair()
    yield "upper.CSV", head + a[0] + b[0], [a[1], b[1]]
    yield "empty.csv", b"", []
    yield "only_header.csv", head, []
    yield "only_header_no_break.csv", head[:-1], []
    a = pair()
    yield "blank_first.csv", b"\n" + head + a[0], ["blank", a[1]]
    bad: dict[str, tuple[bytes, Sequence[Outcome]]] = {
        "blank_row": (b"\n", ["blank"]), "blank_rows": (b"\r\n\n", ["blank", "blank"]), "one_field": (b"a\n", ["wrong_columns"]),
        "three_fields": (b"a,b,c\n", ["wrong_columns"]), "space_row": (b" \n", ["wrong_columns"]), "unquoted_comma": (b"hello, you,a\n", ["wrong_columns"]),
        "empty_fields": (b",\n", ["empty_prompt"]), "empty_answer": (b"q,\n", ["empty_answer"]), "blank_answer": (b'q,"  "\n', ["empty_answer"]),
        "nul": (b"q\0,a\n", ["nul_character"]), "latin": (b"caf\xe9,a\n", ["bad_utf8"]), "cut_utf8": (b"\xe4\xbd,a\n", ["bad_utf8"]),
        "cesu": (b"\xed\xa0\x80,a\n", ["bad_utf8"]), "gbk": ("你是谁,我\n".encode("gbk"), ["bad_utf8"]), "text_after_quote": (b'"q"x,a\n', ["bad_csv"]),
        "control": (b"q,<|im_end|>\n", ["control_token"]), "garbled": ("q,schÃ¶n und groÃŸ\n".encode(), ["garbled"]),
        "latin_in_quotes": (b'"q\ncaf\xe9","a"\n', ["bad_utf8"]), "semicolons": (b"q;a\n", ["wrong_columns"]),
    }  # fmt: skip
    for name, (data, outcomes) in bad.items():
        a, b = pair(), pair()
        yield f"csv_{name}.csv", head + a[0] + data + b[0], [a[1], *outcomes, b[1]]
    for name, text in {
        "newline": "a\nb", "crlf": "a\r\nb", "cr": "a\rb", "quote": 'say "yes"', "comma": "a, b", "only_quotes": '""', "u2028": "a\u2028b", "spaces": "  a ",
        "blank_lines": "a\n\n\nb", "formula": "=1+1", "number": "007", "null": "NULL", "na": "N/A", "date": "2024-01-01", "mark": "\ufeffa", "backslash": 'a\\"b', "form_feed": "a\x0cb\x0bc",
    }.items():  # fmt: skip
        question = f"{text} {unique()}"
        for mark in ("\n", "\r\n"):
            question += "!"
            end = "lf" if mark == "\n" else "crlf"
            yield (
                f"csv_text_{name}_{end}.csv",
                csv(("instruction", "output"), (question, text), mark=mark),
                [(question, text)],
            )
    inches = unique()
    yield "csv_bare_quote.csv", head + f'a 5" pipe {inches},a "b" c\n'.encode(), [(f'a 5" pipe {inches}', 'a "b" c')]
    a, b = pair(), pair()
    yield (
        "csv_other_columns.csv",
        b"id,instruction,input,output,x\n1,ask " + a[0].replace(b",", b",,").strip() + b",9\n",
        [("ask " + a[1][0], a[1][1])],
    )
    a = pair()
    yield "csv_one_empty_header.csv", b"instruction,output,\n" + a[0].strip() + b",zzz\n", [a[1]]
    a = pair()
    yield "csv_wrong_header.csv", b"question,reply\n" + a[0], ["missing_instruction"]
    a = pair()
    yield "csv_header_case.csv", b"Instruction,OUTPUT\n" + a[0], [a[1]]
    for head_of_others in (
        "question,answer",
        "query,response",
        "Question,Answer",
        "问题,答案",
        "指令,输出",
        "prompt,response",
    ):
        a = pair()
        yield f"csv_others_{unique()}.csv", head_of_others.encode() + b"\n" + a[0], [a[1]]
    yield "csv_two_answers.csv", b"question,answer,response\nq,a,b\n", ["missing_instruction"]
    yield "csv_case_twice.csv", b"instruction,Output,OUTPUT\nq,a,b\n", ["missing_output"]
    yield "csv_header_space.csv", b"instruction, output\n" + a[0], ["missing_output"]
    yield "csv_header_nul.csv", b"instruction\0,output\n" + a[0], ["missing_instruction"]
    yield "csv_mark_twice.csv", BOM * 2 + head + a[0], ["missing_instruction"]
    yield from separators(head)
    yield "csv_no_header.csv", a[0] + a[0], ["missing_instruction"]
    a = pair()
    yield (
        "csv_tools.csv",
        b"instruction,output,tools\n" + a[0].strip() + b',"[{""name"": ""f""}]"\n' + b"q,a,[{\n",
        [a[1], "bad_tools"],
    )
    number = unique()
    talked = json.dumps([{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}])
    yield (
        "csv_messages.csv",
        csv(("messages",), (talked,), ("[",), ("",), ("{}",)),
        [(f"q{number}", "a"), "bad_json", "missing_instruction", "wrong_type"],
    )
    a = pair()
    for name, data, outcomes in (
        ("unclosed_last", head + a[0] + b'"q,a\n', [a[1], BROKEN]), ("unclosed_middle", head + a[0] + b'"q,a\n' + a[0], [a[1], BROKEN]),
        ("unclosed_only", head + b'"', [BROKEN]), ("unclosed_field", head + a[0] + b'q,"a', [a[1], BROKEN]), ("unclosed_header", b'"instruction,output\n' + a[0], [BROKEN]),
        ("header_twice", b"instruction,output,output\n" + a[0], [BROKEN]), ("header_broken", b'"instruction"x,output\n' + a[0] + a[0], [BROKEN]),
        ("header_latin", b"instruction,output,caf\xe9\n" + a[0], [BROKEN]), ("header_twice_odd", b"instruction,x,x\n" + a[0], [BROKEN]),
        ("utf16", "instruction,output\nq,a\n".encode("utf-16"), [BROKEN]), ("utf32", "instruction,output\nq,a\n".encode("utf-32"), [BROKEN]),
        ("xlsx", b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xff\xfe\n\0", [BROKEN]),
    ):  # fmt: skip
        yield f"broken_csv_{name}.csv", data, outcomes


def separators(head: bytes) -> Made:
    """Tables whose fields are separated by another mark than their suffix says."""
    for name, mark in {"semicolons": b";", "tabs": b"\t", "bars": b"|"}.items():
        a, b = pair(), pair()
        yield f"csv_{name}.csv", (head + a[0] + b[0]).replace(b",", mark), [a[1], b[1]]
    a = pair()
    yield "csv_sep.csv", BOM + b"sep=;\r\n" + (head + a[0]).replace(b",", b";"), [a[1]]
    yield "csv_semicolon_inside.csv", b"instruction,output;x\nq,a\n", ["missing_output"]
    a = pair()
    yield "csv_commas.tsv", head + a[0], [a[1]]


# --- Parquet ---


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    """A table's bytes."""
    import pyarrow
    from pyarrow import parquet as pq

    stream = io.BytesIO()
    table = columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns)
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def invalid(*texts: bytes) -> Any:
    """A string column with these bytes, whatever they are."""
    import pyarrow

    return pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())


def parquets() -> Made:
    """A cell that has no text costs its row; a file that is no Parquet costs all."""
    import pyarrow

    def texts(count: int = 2) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
        numbers = [unique() for _ in range(count)]
        return [f"q {n}" for n in numbers], [f"a {n}" for n in numbers], [(f"q {n}", f"a {n}") for n in numbers]

    for name, kind in {
        "string": pyarrow.string(), "large_string": pyarrow.large_string(), "string_view": pyarrow.string_view(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    }.items():  # fmt: skip
        q, a, both = texts()
        yield (
            f"{name}.parquet",
            parquet({"instruction": pyarrow.array(q, kind), "output": pyarrow.array(a, kind)}),
            both,
        )
    for name, values, outcome in (
        ("nulls", pyarrow.nulls(2), "wrong_type"), ("null_texts", pyarrow.array([None, None], pyarrow.string()), "wrong_type"),
        ("ints", pyarrow.array([1, 2]), "wrong_type"), ("floats", pyarrow.array([1.5, float("nan")]), "wrong_type"), ("bools", pyarrow.array([True, False]), "wrong_type"),
        ("dates", pyarrow.array([date(2024, 1, 1)] * 2), "wrong_type"), ("times", pyarrow.array([datetime(2024, 1, 1)] * 2), "wrong_type"),
        ("nanoseconds", pyarrow.array([1, 2], pyarrow.timestamp("ns")), "wrong_type"), ("durations", pyarrow.array([1, 2], pyarrow.duration("ns")), "wrong_type"),
        ("far_dates", pyarrow.array([2**30, -(2**30)], pyarrow.date32()), "wrong_type"), ("far_times", pyarrow.array([2**62, -(2**62)], pyarrow.timestamp("us")), "wrong_type"),
        ("zones", pyarrow.array([1, 2], pyarrow.timestamp("us", "Mars/Base")), "wrong_type"), ("binary", pyarrow.array([b"a", b"\xff"]), "wrong_type"),
        ("lists", pyarrow.array([["a"], []]), "wrong_type"), ("structs", pyarrow.array([{"a": 1}, {"a": None}]), "wrong_type"),
        ("decimals", pyarrow.array([1, 2]).cast(pyarrow.decimal128(22, 2)), "wrong_type"), ("utf8_bad", invalid(b"\xff", b"caf\xe9"), "bad_utf8"),
        ("utf8_cesu", invalid(b"\xed\xa0\x80", b"\xed\xa0\xbd\xed\xb8\x80"), "bad_utf8"), ("nul", pyarrow.array(["a\0", "\0"]), "nul_character"), ("empty", pyarrow.array(["", " "]), "empty_answer"),
        ("maps", pyarrow.array([[("a", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())), "wrong_type"),
    ):  # fmt: skip
        yield f"output_{name}.parquet", parquet({"instruction": ["q", "r"], "output": values}), [outcome] * 2
        if outcome == "wrong_type":
            q, a, both = texts()
            yield f"unused_{name}.parquet", parquet({"instruction": q, "output": a, "unused": values}), both
    q, a, both = texts(3)
    mixed = pyarrow.table({"instruction": q, "output": invalid(a[0].encode(), b"\xff", a[2].encode())})
    turn = pyarrow.StructArray.from_arrays(
        [pyarrow.array(["user", "assistant"]), invalid(b"q", b"\xff")], ["role", "content"]
    )
    yield "bad_byte_in_turn.parquet", parquet({"messages": pyarrow.ListArray.from_arrays([0, 2], turn)}), ["bad_utf8"]
    yield "one_bad_byte.parquet", parquet(mixed), [both[0], "bad_utf8", both[2]]
    q, a, both = texts(3)
    yield (
        "one_null.parquet",
        parquet({"instruction": q, "input": ["", None, "x"], "output": [a[0], a[1], None]}),
        [*both[:2], "wrong_type"],
    )
    q, a, both = texts(2500)
    yield "groups.parquet", parquet({"instruction": q, "output": a}, row_group_size=700), both
    yield "no_rows.parquet", parquet({"instruction": pyarrow.array([], pyarrow.string())}), []
    yield "no_columns.parquet", parquet({"other": ["q"]}), ["missing_instruction"]
    yield "no_output.parquet", parquet({"instruction": ["q"]}), ["missing_output"]
    q, a, both = texts()
    talked = [[{"role": "user", "content": x}, {"role": "assistant", "content": y}] for x, y in both]
    yield "messages.parquet", parquet({"messages": talked}), both
    q, a, both = texts()
    shares = [[{"from": "human", "value": x}, {"from": "gpt", "value": y}] for x, y in both]
    yield "conversations.parquet", parquet({"conversations": shares, "images": [None, None]}), both
    text = json.dumps(talked[0]).replace("q ", "question ")
    found = tuple(turn["content"] for turn in json.loads(text))
    yield (
        "messages_as_text.parquet",
        parquet({"messages": [text, "[", None]}),
        [found, "bad_json", "missing_instruction"],
    )
    q, a, both = texts()
    weights = [
        [{"role": "user", "content": q[0], "weight": None}, {"role": "assistant", "content": a[0], "weight": 0}],
        [{"role": "user", "content": q[1], "weight": None}, {"role": "assistant", "content": a[1], "weight": 1}],
    ]
    yield "weights.parquet", parquet({"messages": weights}), ["nothing_to_train", both[1]]
    for name, value in {"dates": date(2024, 1, 1), "bytes": b"\xff", "times": datetime(2024, 1, 1)}.items():
        calls = [{"function": {"name": "f", "arguments": {"x": value}}}]
        turns = [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": "", "tool_calls": calls},
        ]
        yield f"call_{name}.parquet", parquet({"messages": [turns]}), ["bad_tool_call"]
        yield (
            f"tools_{name}.parquet",
            parquet({"instruction": ["q"], "output": ["a"], "tools": [[{"name": "f", "x": value}]]}),
            ["bad_tools"],
        )
    q, a, both = texts()
    for codec in ("gzip", "zstd", "lz4"):
        q, a, both = texts()
        yield f"{codec}.parquet", parquet({"instruction": q, "output": a}, compression=codec), both
    q, a, both = texts()
    whole = parquet({"instruction": q, "output": a})
    yield "inside_gzip.parquet.gz", gzip.compress(whole, mtime=0), both
    for name, data in {
        "truncated": whole[:-20], "half": whole[: len(whole) // 2], "no_head": whole[20:], "empty": b"", "zeros": bytes(1000), "magic": b"PAR1", "magics": b"PAR1PAR1",
        "wrong_magic": whole[:-4] + b"PAR2", "text": b'{"instruction": "q", "output": "a"}\n', "footer": whole[:-8] + b"\xff\xff\xff\x7fPAR1", "gzip_cut": gzip.compress(whole, mtime=0)[:-12],
        "thrift": whole[:-200] + bytes(192) + whole[-8:],
    }.items():  # fmt: skip
        yield f"broken_{name}.parquet", data, [BROKEN]
    two = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, ["instruction", "output", "output"])
    yield "broken_names_twice.parquet", parquet(two), [BROKEN]
    named = parquet({"instruction": ["q"], "output": ["a"], "unusedname": ["u"]}, store_schema=False)
    yield "broken_name_bytes.parquet", named.replace(b"unusedname", b"\xff\xfeusedname"), [BROKEN]


# --- gzip ---


def zipped() -> Made:
    """Told by its first bytes, whatever it is called; a damaged one gives the lines before the damage."""

    def press(data: bytes) -> bytes:
        return gzip.compress(data, mtime=0)

    data, outcomes = lines(good(), good())
    yield "good.jsonl.gz", press(data), outcomes
    data, outcomes = lines(good(), good(), end=b"")
    yield "good_no_break.jsonl.gz", press(data), outcomes
    data, outcomes = array(good(), good())
    yield "good.json.gz", press(data), outcomes
    a, b = pair(), pair()
    yield "good.csv.gz", press(b"instruction,output\n" + a[0] + b[0]), [a[1], b[1]]
    a, b = pair(), pair()
    yield "upper.CSV.GZ", press(b"instruction,output\n" + a[0] + b[0]), [a[1], b[1]]
    data, outcomes = lines(good(), good())
    yield "not_gzip.jsonl.gz", data, outcomes
    data, outcomes = lines(good(), good())
    yield "secretly_gzip.jsonl", press(data), outcomes
    a = pair()
    yield "secretly_gzip.csv", press(b"instruction,output\n" + a[0]), [a[1]]
    a = pair()
    yield "not_gzip.csv.gz", b"instruction,output\n" + a[0], [a[1]]
    entries = [good() for _ in range(3)]
    yield "members.jsonl.gz", b"".join(press(data + b"\n") for data, _ in entries), [outcome for _, outcome in entries]
    data, outcomes = lines(good(), good())
    yield "member_inside_line.jsonl.gz", press(data[:30]) + press(data[30:]), outcomes
    data, outcomes = lines(good(), good())
    yield "empty_member_first.jsonl.gz", press(b"") + press(data) + press(b""), outcomes
    data, outcomes = array(good(), good())
    yield "mark_member_first.json.gz", press(BOM) + press(data), outcomes
    data, outcomes = array(good(), good())
    yield "blank_member_first.json.gz", press(b" \n") + press(b"\n") + press(data), outcomes
    data, outcomes = lines(good(), good())
    yield "zeros_after.jsonl.gz", press(data) + bytes(512), outcomes
    yield "empty.jsonl.gz", press(b""), []
    yield "empty_for_real.jsonl.gz", b"", []
    data, _ = lines(good())
    yield "twice.jsonl.gz", press(press(data)), undecodable(press(data))
    data, outcomes = lines(good(), good())
    for name, damaged, before in (
        ("garbage_after", press(data) + b"garbage", outcomes), ("cut_member", press(data) + press(data)[:15], outcomes), ("cut_trailer", press(data)[:-4], outcomes),
        ("wrong_sum", press(data)[:-8] + bytes(8), outcomes), ("cut_head", press(data)[:6], []), ("two_bytes", b"\x1f\x8b", []), ("wrong_method", b"\x1f\x8b\x07" + bytes(20), []),
        ("wrong_flags", b"\x1f\x8b\x08\x04" + bytes(4), []), ("bad_block", press(data)[:10] + b"\xff" * 20, []),
    ):  # fmt: skip
        yield f"broken_{name}.jsonl.gz", damaged, [*before, BROKEN]
    a = pair()
    yield "broken_cut.csv.gz", press(b"instruction,output\n" + a[0])[:-4], [a[1], BROKEN]
    one = array(good())
    yield "broken_cut.json.gz", press(one[0])[:-4], [BROKEN]
