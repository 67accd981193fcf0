import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockstep.data import notes
from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow, Remarks
from lockstep.data.encoding import Sample
from lockstep.data.ledger import Ledger
from lockstep.data.records import Record, Reject
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

SPLITS = ("train", "validation", "test")
WHOLE = Data(validation_share=0, test_share=0, max_reject_share=0.2)  # nothing is held out


def sample(file: str, prompt: int, answer: int, cut: int = 0) -> Sample:
    ids = list(range(prompt + answer))
    return Sample(
        ids, [IGNORE] * prompt + ids[prompt:], ConversationRow((), Record(file, 1, JsonObject([]))), answer, 0, cut
    )


ACTIONS = st.one_of(
    st.tuples(st.just("drop"), st.sampled_from("ab"), st.sampled_from(["blank", "bad_json", "duplicate", "too_long"])),
    st.tuples(st.just("keep"), st.sampled_from("ab"), st.sampled_from(SPLITS), st.integers(1, 3), st.integers(0, 2)),
)


@given(st.lists(ACTIONS, max_size=60))
def test_the_sums_always_match(actions: list[tuple]) -> None:  # type: ignore[type-arg]
    ledger = Ledger(SPLITS)
    for action in actions:
        if action[0] == "drop":
            ledger.drop(*action[1:])
        else:
            _, file, split, parts, cut = action
            ledger.keep(split, [sample(file, 3, 2, cut) for _ in range(parts)], ["whitespace"] if cut else [])
    written = ledger.as_json()
    for account in written["files"].values():
        assert account["lines"] == account["kept"] + sum(account["dropped"].values())
        assert account["truncated"]["rows"] <= account["kept"]
    assert sum(account["lines"] for account in written["files"].values()) == len(actions)
    samples = sum(action[3] for action in actions if action[0] == "keep")
    assert sum(split["rows"] for split in written["splits"].values()) == sum(
        a["kept"] for a in written["files"].values()
    )
    assert sum(split["samples"] for split in written["splits"].values()) == samples
    assert sum(split["tokens"] for split in written["splits"].values()) == 5 * samples
    assert sum(split["supervised_tokens"] for split in written["splits"].values()) == 2 * samples
    assert sum(a["truncated"]["tokens"] for a in written["files"].values()) == sum(
        a[3] * a[4] for a in actions if a[0] == "keep"
    )


def test_an_account_that_does_not_add_up_is_never_written() -> None:
    ledger = Ledger(SPLITS)
    ledger.drop("a", "bad_json")
    ledger.files["a"].lines += 1
    with pytest.raises(AssertionError, match="does not add up"):
        ledger.as_json()


def test_percentiles() -> None:
    ledger = Ledger(SPLITS)
    for size in range(1, 101):
        ledger.keep("train", [sample("a", size - 1, 1)], [])
    assert ledger.as_json()["lengths"] == {"p50": 50, "p95": 95, "max": 100}
    assert Ledger(SPLITS).as_json()["lengths"] == {"p50": 0, "p95": 0, "max": 0}


def test_only_unusable_rows_count_against_a_file_and_a_damaged_one_always_does() -> None:
    ledger = Ledger(SPLITS)
    for _ in range(8):
        ledger.keep("train", [sample("a", 1, 1)], [])
        ledger.drop("a", "duplicate")
        ledger.drop("a", "blank")
    for _ in range(2):
        ledger.drop("a", "bad_utf8")
    assert ledger.problem(WHOLE) is None
    ledger.drop("a", "bad_utf8")
    reason = ledger.problem(WHOLE)
    assert reason and "3 of 11 rows were dropped (bad_utf8 3)" in reason and "save the file as UTF-8" in reason
    ledger.drop("b", "broken_file")
    reason = ledger.problem(WHOLE.model_copy(update={"max_reject_share": 1.0}))
    assert reason and reason.startswith("b is damaged")


def test_a_split_that_the_settings_ask_for_must_not_be_empty() -> None:
    ledger = Ledger(SPLITS)
    ledger.drop("a", "duplicate")
    assert ledger.problem(Data()) == "no row is left for train (1 rows read, dropped: duplicate 1)"
    ledger.keep("train", [sample("a", 1, 1)], [])
    assert ledger.problem(WHOLE) is None
    reason = ledger.problem(Data(test_share=0))
    assert reason and reason.endswith(": give --data.validation_file, or --data.validation_share 0 to go without")
    reason = ledger.problem(Data(validation_share=0, test_file=("b",)))
    assert reason and reason.endswith(": give --data.test_file, or --data.test_file null to go without")


def test_what_is_noticed_of_kept_rows_is_counted_by_name_within_bounds() -> None:
    ledger = Ledger(SPLITS)
    for number in range(200):
        kept = sample("a", 1, 1)
        names = (f"key {number}", "id", "x" * 500, "\ud800")
        kept.row = replace(
            kept.row, remarks=Remarks(names, ("query → instruction",), {"placeholder": f"{{{{{number}}}}}"})
        )
        ledger.keep("train", [kept], [])
    account = ledger.as_json()["files"]["a"]
    assert account["ignored"]["id"] == account["ignored"]["x" * 80] == account["ignored"]["\\ud800"] == 200
    assert len(account["ignored"]) == 51 and account["ignored"]["…"] == 153
    assert account["renamed"] == {"query → instruction": 200} and account["noted"] == {"placeholder": 200}
    lines = list(notes.lines(ledger, WHOLE))
    assert any(line.startswith("fields that nothing reads: id (200), ") and line.endswith("more") for line in lines)
    assert any("200 rows hold a placeholder such as {{0}} (a:1)" in line for line in lines)
    json.dumps(ledger.as_json(), ensure_ascii=False).encode()


def test_a_name_with_a_space_at_its_end_is_shown_in_quotes() -> None:
    ledger, kept = Ledger(SPLITS), sample("a", 1, 1)
    kept.row = replace(kept.row, remarks=Remarks(("输入 ",), (), {}))
    ledger.keep("train", [kept], [])
    assert "fields that nothing reads: '输入 ' (1)" in list(notes.lines(ledger, WHOLE))


def test_a_file_is_hopeless_by_its_first_rows_alone() -> None:
    ledger = Ledger(SPLITS)
    reject = Reject("a", 7, "missing_output", "", "", 9, ("ask", "reply"))
    for _ in range(99):
        ledger.drop("a", "missing_output", reject)
    for reason in ("blank", "duplicate", "too_long", "marked_untrained"):
        for _ in range(200):
            ledger.drop("a", reason)
    assert ledger.hopeless(WHOLE) is None
    ledger.drop("a", "missing_output", reject)
    said = ledger.hopeless(WHOLE)
    assert said and said.startswith(
        "none of the first 100 rows of a can be used (missing_output 100); a: element 7, line 9: "
    )
    assert said.endswith("--data.columns instruction=ask,output=reply")
    assert ledger.hopeless(WHOLE.model_copy(update={"max_reject_share": 1.0})) is None
    ledger.keep("train", [sample("a", 1, 1)], [])
    assert ledger.hopeless(WHOLE) is None


def test_a_refusal_is_one_line_that_shows_the_first_row_and_what_helps() -> None:
    ledger = Ledger(SPLITS)
    ledger.drop("a", "broken_file", Reject("a", 1, "broken_file", "line 3:\n'x'\x1b where ',' must stand", "", 3))
    assert (
        ledger.problem(WHOLE)
        == "a is damaged: nothing after line or element 0 can be read (line 3: 'x' where ',' must stand)"
    )
    for reason, keys, helps in (
        ("preference_pair", ("prompt", "chosen", "rejected"), "--data.columns completion=chosen"),
        ("preference_pair", ("chosen", "rejected"), "--data.columns messages=chosen"),
        ("missing_instruction", ("text",), "its only key is text"),
        ("missing_instruction", ("a", "b", "c"), "its keys are a, b, c; name those"),
        ("missing_output", ("question", " answer"), "--data.columns instruction=question,output=answer"),
        ("missing_output", ("the question", "$(x)"), "--data.columns 'instruction=the question,output=$(x)'"),
        ("missing_content", ("messages",), "--data.columns content=NAME"),
        ("too_long", ("a",), "--data.max_length"),
    ):  # fmt: skip
        ledger = Ledger(SPLITS)
        ledger.drop("a", reason, Reject("a", 2, reason, "", "", 2, keys))
        said = ledger.problem(WHOLE)
        assert said and helps in said and "a:2" in said and "\n" not in said
    for detail, text, helps in (
        ("Extra data", '{"a": 1},', "no comma at their ends"),
        ("not JSON: x", "q,[{'a'", "json.dumps"),
        ("Expecting value", "a,b", "suffix .csv"),
    ):
        ledger = Ledger(SPLITS)
        ledger.drop("a", "bad_json", Reject("a", 2, "bad_json", detail, text, 2))
        assert helps in str(ledger.problem(WHOLE))
    for theirs, column in (("input ", "input"), ("输入 ", "输入")):
        near = Reject("a", 2, "unclear_key", f"{theirs!r} is not input", "", 2, ())
        ledger = Ledger(SPLITS)
        ledger.drop("a", near.reason, near)
        assert str(ledger.problem(WHOLE)).endswith(f"read it with --data.columns input={column}")
