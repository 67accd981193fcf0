import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep import rows
from lockstep.errors import UserError
from lockstep.rows import Reject, Row

GOOD = b'{"instruction": "i", "input": "", "output": "o"}'


def read(folder: Path, data: bytes) -> list[Row | Reject]:
    file = folder / "rows.jsonl"
    file.write_bytes(data)
    return list(rows.read(file))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank"),
        (b" \t\r", "blank"),
        (b'{"instruction": "a", "output": "b"', "bad_json"),
        (GOOD + GOOD, "bad_json"),
        (b'{"instruction": "caf\xe9", "output": "b"}', "bad_utf8"),
        (b'"text"', "not_an_object"),
        (b"[1]x", "bad_json"),
        (b"null", "not_an_object"),
        (b'{"output": "b"}', "missing_instruction"),
        (b'{"instruction": "a"}', "missing_output"),
        (b'{"instruction": 1, "output": "b"}', "wrong_type"),
        (b'{"instruction": "a", "output": NaN}', "wrong_type"),
        (b'{"instruction": "a", "output": null}', "wrong_type"),
        (b'{"instruction": "a", "input": ["x"], "output": "b"}', "wrong_type"),
        (b'{"instruction": "a", "output": "b", "output": "c"}', "duplicate_key"),
        (b'{"instruction": "a\\u0000", "output": "b"}', "nul_character"),
        (b'{"instruction": "a", "output": "\\ud800"}', "lone_surrogate"),
        (b'{"instruction": " ", "input": "\\n", "output": "b"}', "empty_prompt"),
        (b'{"instruction": "a", "output": " \\n"}', "empty_answer"),
        (b'{"instruction": "a", "output": "b", "history": [["q", "a"]]}', "history_not_supported"),
        (b'{"instruction": "a", "output": "b", "system": "s"}', "system_not_supported"),
        (b"[" * 100_000, "bad_json"),
    ],
)
def test_each_bad_line_has_its_reason_and_the_others_are_kept(tmp_path: Path, line: bytes, reason: str) -> None:
    found = read(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD)
    assert [type(row) for row in found] == [Row, Reject, Row]
    assert isinstance(found[1], Reject)
    assert (found[1].reason, found[1].line) == (reason, 2)
    json.dumps(found[1].text).encode()  # can be written down


def test_text_arrives_as_it_was(tmp_path: Path) -> None:
    text = "  2024-01-01 \u3000“引号”，\t🙂\u200b\r\n "
    line = json.dumps({"instruction": text, "input": text, "output": text, "id": 7}).encode()
    (row,) = read(tmp_path, line)
    assert isinstance(row, Row)
    assert (row.instruction, row.input, row.output) == (text, text, text)


def test_byte_order_mark_crlf_and_a_missing_last_line_break(tmp_path: Path) -> None:
    found = read(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD)
    assert [row.line for row in found if isinstance(row, Row)] == [1, 2]


def test_a_json_array_in_any_layout(tmp_path: Path) -> None:
    text = json.dumps(
        [{"instruction": "请以甄嬛的口吻回答：", "input": "", "output": "吾"}, 3, {}], indent=2, ensure_ascii=False
    )
    found = read(tmp_path, b"\xef\xbb\xbf \n" + text.encode())
    assert isinstance(found[0], Row)
    assert [row.reason for row in found[1:] if isinstance(row, Reject)] == ["not_an_object", "missing_instruction"]


def test_an_array_that_breaks_off_is_one_line(tmp_path: Path) -> None:
    for data in (b'[{"instruction": "a"', b"[\xff]", b"[" * 100_000):
        with pytest.raises(UserError, match=r"starts like a JSON array but is none"):
            read(tmp_path, data)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*absent"):
        list(rows.read(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="cannot read"):
        list(rows.read(tmp_path))
    assert read(tmp_path, b"") == []


@given(st.lists(st.binary(max_size=60).filter(lambda b: b"\n" not in b), max_size=20))
def test_every_line_becomes_exactly_one_thing(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    data = b"\n".join([GOOD, *lines, GOOD])
    found = read(tmp_path_factory.mktemp("rows"), data)
    assert [row.line for row in found] == list(range(1, len(lines) + 3))


def test_json_lines_split_at_line_breaks_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": "x\u2028y\x85z"}\n\n{"a": 1}\n', encoding="utf-8")
    assert list(rows.json_lines(file)) == [(1, {"a": "x\u2028y\x85z"}), (3, {"a": 1})]
    file.write_text("{}\n{", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.jsonl:2 is not JSON"):
        list(rows.json_lines(file))


def test_an_element_with_a_key_twice_is_rejected_alone(tmp_path: Path) -> None:
    found = read(tmp_path, b"[" + GOOD + b', {"instruction": "a", "output": "b", "output": "c"}]')
    assert isinstance(found[0], Row)
    assert isinstance(found[1], Reject) and found[1].reason == "duplicate_key"
