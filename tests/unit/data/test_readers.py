import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lockstep.data import json_readers, readers, table_readers
from lockstep.data.records import BROKEN, Record, Reject
from lockstep.errors import UserError
from lockstep.text import json_text

GOOD = b'{"a": "x"}'


def read(folder: Path, data: bytes, name: str = "rows.jsonl") -> list[Record | Reject]:
    file = folder / name
    file.write_bytes(data)
    return list(readers.records(file))


def reasons(outcomes: list[Record | Reject]) -> list[str]:
    return [outcome.reason if isinstance(outcome, Reject) else "" for outcome in outcomes]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "blank"),
        (b" \t\r", "blank"),
        (b'{"a": "b"', "bad_json"),
        (GOOD + GOOD, "bad_json"),
        (b'{"a": "caf\xe9"}', "bad_utf8"),
        (b"[1]x", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b"\xef\xbb\xbf" + GOOD, "bad_json"),
    ],
)
def test_each_bad_line_has_its_reason_and_the_others_are_kept(tmp_path: Path, line: bytes, reason: str) -> None:
    outcomes = read(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD)
    assert reasons(outcomes) == ["", reason, ""]
    assert [outcome.line for outcome in outcomes] == [1, 2, 3]
    json.dumps(outcomes[1].text).encode()  # can be written down


def test_byte_order_mark_crlf_and_a_missing_last_line_break(tmp_path: Path) -> None:
    outcomes = read(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD)
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Record)] == [{"a": "x"}, {"a": "x"}]
    assert read(tmp_path, b"") == []


def test_a_line_larger_than_any_context_is_passed_over_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_readers, "LARGEST", 100)
    outcomes = read(tmp_path, GOOD + b"\n" + b'{"a": "' + b"x" * 1000 + b'"}\n' + GOOD + b"\n")
    assert reasons(outcomes) == ["", "too_large", ""]
    assert isinstance(outcomes[1], Reject) and outcomes[1].detail == "1010 bytes" and len(outcomes[1].text) == 101


@pytest.mark.parametrize("step", [1, 7, 2**20])
def test_an_array_is_the_same_however_it_is_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    values = [{"a": "请以甄嬛的口吻回答：🙂"}, 12345, "text", [1, {"b": None}], {}, -1.5e3, True]
    text = json.dumps(values, indent=1, ensure_ascii=False).encode()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step)

    outcomes = list(json_readers.elements(Slow(b"\xef\xbb\xbf \n" + text + b"\n")))
    assert [value for value, _ in outcomes] == values  # type: ignore[misc]
    assert [json.loads(raw) for _, raw in outcomes] == values  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b'[{"a": "x"}, {"a": ', 1),
        (b'[{"a": "x"} {"a": "x"}]', 1),
        (b'[{"a": "x"},]', 1),
        (b'[{"a": "x"}', 1),
        (b'[{"a": "x"}] more', 1),
        (b"[", 0),
        (b"[" * 100_000, 0),
    ],
)
def test_a_damaged_array_ends_with_the_element_at_which_it_broke(tmp_path: Path, data: bytes, kept: int) -> None:
    outcomes = read(tmp_path, data, "rows.json")
    assert reasons(outcomes) == [""] * kept + [BROKEN]
    assert outcomes[-1].line == kept + 1


def test_only_the_element_that_is_not_utf8_is_lost(tmp_path: Path) -> None:
    outcomes = read(tmp_path, b'[{"a": "x"}, {"a": "caf\xe9"}, {"a": "\xe4\xbd\xa0"}]', "rows.json")
    assert reasons(outcomes) == ["", "bad_utf8", ""]
    assert "\\xe9" in outcomes[1].text


def test_tables_keep_their_text_byte_for_byte(tmp_path: Path) -> None:
    value = '  2024-01-01,"x"\r\n你好\u2028 '
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerows([["a", "b"], [value, "1"], [value, ""]])
    outcomes = read(tmp_path, b"\xef\xbb\xbf" + buffer.getvalue().encode(), "rows.csv")
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Record)] == [
        {"a": value, "b": "1"},
        {"a": value, "b": ""},
    ]
    parquet.write_table(pyarrow.table({"a": [value, None], "n": [1, 2]}), tmp_path / "rows.parquet")
    outcomes = list(readers.records(tmp_path / "rows.parquet"))
    assert [outcome.value for outcome in outcomes if isinstance(outcome, Record)] == [
        {"a": value, "n": 1},
        {"a": None, "n": 2},
    ]


def test_csv_rows_that_are_wrong_are_rejected_alone(tmp_path: Path) -> None:
    outcomes = read(tmp_path, b'a,b\n1,2\n1\n"x"y,2\n\n\xff,2\n3,4\n', "rows.csv")
    assert reasons(outcomes) == ["", "wrong_columns", "bad_csv", "blank", "bad_utf8", ""]
    assert reasons(read(tmp_path, b'a,b\n1,2\n"open,2\n3,4\n', "rows.csv")) == ["", BROKEN]
    assert reasons(read(tmp_path, b"a,a\n1,2\n", "rows.csv")) == [BROKEN]
    (outcome,) = read(tmp_path, b"a,b,,\n1,2,,\n", "rows.csv")  # as spreadsheets write it
    assert isinstance(outcome, Record) and outcome.value == {"a": "1", "b": "2"}


def test_a_stray_quote_never_eats_rows_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_readers, "LARGEST", 1000)
    lines = b"".join(b"%d,x\n" % number for number in range(1000))
    outcomes = read(tmp_path, b'a,b\n1,"open\n' + lines + b'2,"y"\n3,z\n', "rows.csv")
    assert reasons(outcomes) == [BROKEN]
    outcomes = read(
        tmp_path, b'a,b\n1,x\n2,"Why did he\n' + lines[:500] + b'3,he said "no" and left\n4,z\n', "rows.csv"
    )
    assert reasons(outcomes) == ["", BROKEN]  # and not one reject for them all


def test_gzip_is_known_by_its_bytes_and_a_cut_one_is_seen(tmp_path: Path) -> None:
    lines = b"".join(b'{"a": "%d"}\n' % number for number in range(20_000))
    packed = gzip.compress(lines)
    assert len(read(tmp_path, packed, "rows.jsonl.gz")) == len(read(tmp_path, packed, "rows.jsonl")) == 20_000
    outcomes = read(tmp_path, packed[: len(packed) // 2], "rows.jsonl.gz")
    assert reasons(outcomes)[-1] == BROKEN and len(outcomes) > 100
    parquet.write_table(pyarrow.table({"a": ["x"]}), tmp_path / "t.parquet")
    outcomes = read(tmp_path, gzip.compress((tmp_path / "t.parquet").read_bytes()), "t.parquet.gz")
    assert isinstance(outcomes[0], Record) and outcomes[0].value == {"a": "x"}


def test_parquet_that_is_none_and_text_that_is_not_utf8(tmp_path: Path) -> None:
    for data in (b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1"):
        assert reasons(read(tmp_path, data, "rows.parquet")) == [BROKEN]
    wrong = pyarrow.array([b"x", b"caf\xe9"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"a": wrong}), tmp_path / "rows.parquet")
    assert reasons(list(readers.records(tmp_path / "rows.parquet"))) == ["", "bad_utf8"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*absent"):
        list(readers.records(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="cannot read"):
        list(readers.records(tmp_path))


@given(st.lists(st.binary(max_size=60).filter(lambda b: b"\n" not in b), max_size=20))
def test_every_line_becomes_exactly_one_thing(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    data = b"\n".join([GOOD, *lines, GOOD])
    outcomes = read(tmp_path_factory.mktemp("rows"), data)
    assert [outcome.line for outcome in outcomes] == list(range(1, len(lines) + 3))


@given(st.binary(max_size=200), st.sampled_from(["r.json", "r.csv", "r.tsv", "r.parquet", "r.arrow", "r.jsonl.gz"]))
def test_no_bytes_raise_anything(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    for start in (b"", b"[", b'{"data": [{', b"{\n", b"a,b\n", b"\x1f\x8b\x08\x00", b"PAR1"):
        outcomes = read(tmp_path_factory.mktemp("rows"), start + data, name)
        assert [outcome.line for outcome in outcomes] == list(range(1, len(outcomes) + 1))


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=8))
def test_an_array_and_lines_of_the_same_values_read_alike(
    tmp_path_factory: pytest.TempPathFactory, values: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    array = read(folder, json.dumps(values).encode(), "rows.json")
    lines = read(folder, "".join(json.dumps(value) + "\n" for value in values).encode())
    assert [outcome.value for outcome in array] == [outcome.value for outcome in lines] == values  # type: ignore[union-attr]


def values(outcomes: list[Record | Reject]) -> list[object]:
    return [outcome.value if isinstance(outcome, Record) else outcome.reason for outcome in outcomes]


def test_places_are_element_and_line(tmp_path: Path) -> None:
    array = b'[\n {"a": 1},\n {"a":\n  2},\n\n {"a": "\xff"}, {"a": 3}\n {"a": 4}]'
    outcomes = read(tmp_path, array, "rows.json")
    assert values(outcomes) == [{"a": 1}, {"a": 2}, "bad_utf8", {"a": 3}, BROKEN]
    assert [(outcome.line, outcome.file_line) for outcome in outcomes] == [(1, 2), (2, 3), (3, 6), (4, 6), (5, 7)]
    damage = outcomes[-1]
    assert isinstance(damage, Reject) and damage.detail == "line 7: '{' where ',' or ']' must stand"
    assert damage.place.endswith("rows.json: element 5, line 7")
    inside = read(tmp_path, b'[{"a": 1},\n\n{"a": 2,\n"b" 3}]', "rows.json")[-1]
    assert isinstance(inside, Reject) and inside.detail == "line 4: Expecting ':' delimiter"
    table = read(tmp_path, b'a,b\n1,"x\ny"\n\n3\n4,5\n', "rows.csv")
    assert [(outcome.line, outcome.file_line) for outcome in table] == [(1, 2), (2, 4), (3, 5), (4, 6)]
    lines = read(tmp_path, GOOD + b"\n{\n" + GOOD)
    assert [(outcome.line, outcome.file_line) for outcome in lines] == [(1, 1), (2, 2), (3, 3)]
    assert isinstance(lines[1], Reject) and lines[1].place.endswith("rows.jsonl:2")


@pytest.mark.parametrize("step", [1, 7, 2**20])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_under_a_key_and_objects_in_a_row_are_the_same_however_they_are_cut(step: int, indent: int | None) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(step)

    rows = [{"a": "请：🙂"}, {"b": [1, {"c": "]}"}]}, {}]
    text = json.dumps({"v": {"x": [1]}, "n": -1.5, "data": rows, "z": [2]}, indent=indent, ensure_ascii=False)
    assert [value for value, _ in json_readers.wrapped(Slow(text.encode()), "data")] == rows  # type: ignore[misc]
    text = "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    assert [value for value, _ in json_readers.objects(Slow(text.encode()))] == rows  # type: ignore[misc]


def test_a_large_array_under_a_key_is_read_in_flat_memory(tmp_path: Path) -> None:
    row = b'{"a": "' + b"x" * 1000 + b'"}'
    file = tmp_path / "rows.json"
    file.write_bytes(b'{"version": 1,\n"data": [' + b",\n".join([row] * 20_000) + b"]}")
    tracemalloc.start()
    assert sum(isinstance(outcome, Record) for outcome in readers.records(file)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 12e6  # of a file of 20 MB
    tracemalloc.stop()
    assert readers.note(file) == "its rows stand under 'data'"


@pytest.mark.parametrize(
    ("name", "data", "note"),
    [
        ("a.csv", b"a;b\n1;2\n", "fields are separated by ';'"),
        ("a.csv", b"a\tb\n1\t2\n", "fields are separated by tabs"),
        ("a.tsv", b"a,b\n1,2\n", "fields are separated by ','"),
        ("a.csv", b'"a;c",b\n1,2\n', ""),
        ("a.csv", b"a\n1;2\n", ""),
        ("a.csv", b"", ""),
        ("a.json", b'[{"a": 1}]', ""),
        ("a.jsonl", b'{"data": [{"a": 1}]}\n{"data": [{"a": 1}]}\n', ""),
        ("a.jsonl", b'{"data": [{"a": 1}]}\n', "its rows stand under 'data'"),
        ("a.jsonl", b'{"messages": [{"a": 1}]}\n', ""),
        ("a.json.gz", gzip.compress(b'{"data": [{"a": 1}]}', mtime=0)[:20], ""),
    ],
)
def test_what_a_file_is_taken_for_is_told(tmp_path: Path, name: str, data: bytes, note: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert readers.note(tmp_path / name) == note


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "header.csv", "rows.json"])
@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "big5"])
def test_another_encoding_is_named_with_its_cure(tmp_path: Path, name: str, encoding: str) -> None:
    question, answer = ("第一個問題是什麼", "這是回答") if encoding == "big5" else ("第一个问题是什么", "这是回答")
    row = json.dumps({"instruction": question, "output": answer}, ensure_ascii=False)
    texts = {
        "rows.jsonl": row + "\n", "rows.json": f"[{row}]",
        "rows.csv": f"instruction,output\n{question},{answer}\n", "header.csv": f"{question},{answer}\nq,a\n",
    }  # fmt: skip
    outcome = read(tmp_path, texts[name].encode(encoding), name)[0]
    assert isinstance(outcome, Reject)
    assert f"it looks like {'BIG5' if encoding == 'big5' else 'GBK'}: convert it with `iconv -f" in outcome.detail


def test_an_array_that_breaks_by_its_encoding_names_it(tmp_path: Path) -> None:
    text = '[{"instruction": "這是許功蓋的問題", "output": "回答在這裡"}]'  # whose Big5 has backslashes
    (outcome,) = read(tmp_path, text.encode("big5"), "rows.json")
    assert isinstance(outcome, Reject) and outcome.reason == BROKEN
    assert outcome.detail.startswith("line 1: ") and "it looks like BIG5" in outcome.detail


def test_utf_16_is_named_by_its_mark(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        outcome = read(tmp_path, "instruction,output\nq,a\n".encode("utf-16"), name)[0]
        assert isinstance(outcome, Reject) and "it looks like UTF-16" in outcome.detail


def test_arrow_files_of_both_kinds(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"a": ["x", None], "m": pyarrow.array([[("k", 1)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64()))}
    )
    for number, new in enumerate((pyarrow.ipc.new_stream, pyarrow.ipc.new_file)):
        with new(tmp_path / f"{number}.arrow", table.schema) as writer:
            writer.write_table(table)
        outcomes = list(readers.records(tmp_path / f"{number}.arrow"))
        assert values(outcomes) == [{"a": "x", "m": {"k": 1}}, {"a": None, "m": {}}]
        assert outcomes[0].file_line is None
        data = (tmp_path / f"{number}.arrow").read_bytes()
        assert BROKEN in reasons(read(tmp_path, data[: len(data) // 2], f"{number}.arrow"))
    assert reasons(read(tmp_path, b"no table", "x.arrow")) == [BROKEN]


def test_json_lines_split_at_line_breaks_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": "x\u2028y\x85z"}\n\n{"a": 1}\n', encoding="utf-8")
    assert list(json_text.json_lines(file)) == [(1, {"a": "x\u2028y\x85z"}), (3, {"a": 1})]
    for line in ("{", "[" * 100_000):
        file.write_text("{}\n" + line, encoding="utf-8")
        with pytest.raises(UserError, match=r"x\.jsonl:2 is not JSON"):
            list(json_text.json_lines(file))
