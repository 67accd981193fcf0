import json
from pathlib import Path
from typing import Any

import pytest

from lockstep.errors import UserError
from lockstep.evaluation import bootstrap, forgetting
from lockstep.evaluation.forgetting import is_right
from lockstep.text import cjk

PANEL = forgetting.load()


def test_the_panel_is_half_chinese_and_every_question_can_be_checked() -> None:
    assert [question.language for question in PANEL.questions] == ["en"] * 10 + ["zh"] * 10
    assert [paragraph.language for paragraph in PANEL.prose] == ["en"] * 4 + ["zh"] * 4
    assert len(PANEL.prose) >= bootstrap.FEWEST  # or no difference of their perplexity could be decided
    texts = [(question.question, question.language) for question in PANEL.questions]
    texts += [(paragraph.text, paragraph.language) for paragraph in PANEL.prose]
    for text, language in texts:
        assert bool(cjk.HAN_OR_KANA.search(text)) == (language == "zh")
    for question in PANEL.questions:
        for accepted in question.accepted:
            assert is_right(f"I think it is {accepted}.", question.accepted)
            assert is_right(f"答案是{accepted}。", question.accepted)


def test_answers_are_found_as_whole_words_and_numbers() -> None:
    assert is_right("The answer is ＭＥＲＣＵＲＹ!", ["Mercury"]) and is_right(
        "**Carbon\n dioxide**", ["carbon dioxide"]
    )
    assert (
        is_right("水的化学式是H₂O。", ["H2O"]) and is_right("大约是30万公里", ["30万"]) and is_right("等于56。", ["56"])
    )
    assert is_right("It is 12, of course: 12.", ["12"]) and is_right("300,000 km", ["300,000"])
    for answer, accepted in [("Audi", "Au"), ("112", "12"), ("12.5", "12"), ("1,12", "12"), ("130万", "30万"),
                             ("hearts", "heart"), ("", "56"), ("   ", "太阳"), ("月亮", "太阳")]:  # fmt: skip
        assert not is_right(answer, [accepted]), answer


def test_the_share_of_right_answers_can_be_compared() -> None:
    good = [question.accepted[0] for question in PANEL.questions]
    base, tuned = (
        forgetting.share_right(PANEL.questions, good),
        forgetting.share_right(PANEL.questions, ["no idea"] * 20),
    )
    assert (base.value, tuned.value) == (1.0, 0.0)
    assert bootstrap.difference(base, tuned).verdict == "worse"
    assert forgetting.share_right(PANEL.questions, [good[0], *[""] * 19]).value == pytest.approx(0.05)
    with pytest.raises(ValueError):
        forgetting.share_right(PANEL.questions, good[:3])


def write(folder: Path, value: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = forgetting.load(write(tmp_path, {"questions": [{"question": "谁写了《史记》？", "accepted": ["司马迁"]}]}))
    assert mine.questions[0].language == "" and not mine.prose
    assert forgetting.share_right(mine.questions, ["司马迁写的"]).value == 1


@pytest.mark.parametrize(("value", "message"), [
    ("{", "is no JSON"), ([], "valid dictionary"), ({}, "neither questions nor prose"),
    ({"questions": [{"question": "a?"}]}, r"questions\[0\].accepted: Field required"),
    ({"questions": [{"question": "a?", "accepted": []}]}, r"questions\[0\].accepted: List should have at least 1"),
    ({"questions": [{"question": "a?", "accepted": [3]}]}, r"questions\[0\].accepted\[0\]: Input should be a valid string"),
    ({"questions": [{"question": "a?", "accepted": [" "]}]}, "empty text"),
    ({"questions": [{"question": "Is gold Au?", "accepted": ["Au"]}]}, "contains an accepted answer"),
    ({"prose": [{"text": "a", "lang": "en"}]}, r"prose\[0\].lang: Extra inputs"),
    ({"prose": [{"text": ""}]}, r"prose\[0\].text: String should have at least 1"),
    ("[" * 100_000, "is no JSON"),
])  # fmt: skip
def test_errors_are_one_line_that_names_the_place(value: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        forgetting.load(write(tmp_path, value))
    assert "\n" not in str(caught.value) and "mine.json" in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        forgetting.load(tmp_path / "none.json")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is no JSON"):
        forgetting.load(tmp_path / "odd.json")
