"""Questions are asked whatever their rows say about training."""

import json
from pathlib import Path

import pytest

from lockstep.client import question_file
from lockstep.errors import UserError
from lockstep.settings.schema import Data


def test_rows_that_are_not_to_be_trained_are_asked(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q1", "completion": "a", "label": False},
        {"instruction": "q2", "kto_tag": False, "weight": 0},
        {"messages": [{"role": "user", "content": "q3"}], "train": False},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    questions = list(question_file.read(file, Data()))
    assert [(question.messages[-1]["content"], question.reference) for question in questions] == [
        ("q1", "a"), ("q2", None), ("q3", None)
    ]  # fmt: skip
    assert not any(question.fault for question in questions)


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.jsonl", '{"query": "q", "response": "a"}\n{"query": "p"}\n', [("q", "a"), ("p", None)]),
        ("b.jsonl", '{"query": "q"}\n', [("q", None)]),
        ("c.jsonl", '{"问题": "q", "答案": "a"}\n', [("q", "a")]),
        ("d.jsonl", '{"问题": "q"}\n', [("q", None)]),
        ("e.csv", "Question;Answer\nq;a\n", [("q", "a")]),
        ("f.csv", "Question\nq\n", [("q", None)]),
        ("g.json", '{"data": [{"instruction": "q"}, {"instruction": "p", "output": "a"}]}', [("q", None), ("p", "a")]),
        ("h.json", '[\n{"prompt": "q"},\n{"prompt": "p", "completion": "a"}]', [("q", None), ("p", "a")]),
        ("i.jsonl", '{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}\n', [("q", None)]),
        ("j.csv", 'messages\n"[{""role"": ""user"", ""content"": ""q""}]"\n', [("q", None)]),
        ("k.jsonl", '{"conversation": [{"from": "human", "value": "q"}]}\n', [("q", None)]),
        ("l.jsonl", '\ufeff{\n  "Prompt": "q"\n}\n', [("q", None)]),
    ],
)
def test_whatever_the_data_stage_reads_can_be_asked(tmp_path: Path, name: str, text: str, asked: object) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    questions = list(question_file.read(tmp_path / name, Data()))
    assert [(question.messages[-1]["content"], question.reference) for question in questions] == asked


def test_columns_of_the_settings_hold(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,more\nq,x\n")
    (question,) = question_file.read(tmp_path / "a.csv", Data(columns=("instruction=text",)))
    assert question.messages == [{"role": "user", "content": "q"}] and question.reference is None
    (tmp_path / "b.jsonl").write_text("3\n")
    with pytest.raises(UserError, match="is no question: not an object"):
        list(question_file.read(tmp_path / "b.jsonl", Data(columns=("instruction=text",))))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"instruction": "问题"}\n'.encode("gbk"), ":1 cannot be read: bad utf8 .*GB.*iconv"),
        ("a.jsonl", b'{"instruction": "a"}\n{"instruction"\n', ":2 cannot be read: bad json"),
        ("a.jsonl", b'{"instruction": "a"}\n{"no": 1}\n', ":2 is no question: missing instruction: its keys are no;"),
        ("a.jsonl", b"[1]\n", "is no question: not an object int"),
        ("a.xlsx", b"PK", "save the sheet as CSV UTF-8"),
    ],
)
def test_what_cannot_be_asked_is_one_line_with_its_cure(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as told:
        list(question_file.read(tmp_path / name, Data()))
    assert "\n" not in str(told.value)
