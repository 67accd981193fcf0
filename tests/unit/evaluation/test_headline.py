"""What an evaluation says in short."""

import pytest
from support.evaluations import PERSONA, metrics

from lockstep.evaluation import headline


def test_free_text_is_headed_by_perplexity_endings_chrf_and_people() -> None:
    figures = metrics(PERSONA, ["不知道"] * 30, [text[:-2] for text in PERSONA])
    lines = headline.lines(figures)
    assert [line.name for line in lines] == ["perplexity", "stop_rate", "chrf"]
    assert (lines[0].tuned, lines[0].verdict) == ("2.72", "better") and lines[1].tuned == "100 %"
    assert headline.sentence(figures, lines) == "Yes, it got better."
    assert headline.is_for_people(figures) and "outputs/r/sheet.csv" in headline.people(figures, "outputs/r/sheet.csv")


def test_json_is_headed_by_its_fields_and_mixed_rows_by_those_that_can_be_checked() -> None:
    orders = [f'{{"count": {number}}}' for number in range(20)]
    assert [line.name for line in headline.lines(metrics(orders, [""] * 20, orders))] == [
        "field_accuracy", "exact_match", "stop_rate",
    ]  # fmt: skip
    mixed = headline.lines(metrics(orders + PERSONA, [""] * 50, orders + PERSONA))
    assert (mixed[0].name, mixed[0].base, mixed[0].tuned) == ("exact_match", "0 %", "100 %")
    assert mixed[0].note == "of the 20 answers that are short or JSON"


@pytest.mark.parametrize(
    ("remembered", "sentence", "note"),
    [
        (0, "It forgot something that has nothing to do with the training rows.", "20 questions"),
        (18, "Whether it forgot anything is undecided; the questions and texts are few.", "20 questions; few"),
    ],
)
def test_what_was_forgotten_is_said_where_rows_are_few_too(remembered: int, sentence: str, note: str) -> None:
    memory, lines = headline.forgotten(metrics(PERSONA, PERSONA, PERSONA, remembered))
    assert memory == sentence and lines[0].note.startswith(note)
    assert (lines[0].base, lines[0].tuned) == ("100 %", f"{5 * remembered} %")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("exact_match", 0.779, "78 %"), ("perplexity", 5.2019, "5.20"), ("perplexity", 92.97, "93.0"),
     ("perplexity", 12345.6, "12,346"), ("chrf", 94.83, "94.8"), ("chrf", None, "–"), ("unknown", 0.5, "0.50")],
)  # fmt: skip
def test_values_are_written_as_people_say_them(name: str, value: float | None, text: str) -> None:
    assert headline.value_text(name, value) == text


def test_that_answers_end_makes_them_no_better() -> None:
    figures = metrics(PERSONA, ["不知道"] * 30, ["不知道"] * 30)
    figures["verdict"] |= {"perplexity": "undecided", "stop_rate": "better"}
    assert headline.sentence(figures, headline.lines(figures)).startswith("That is undecided: 30 test rows")
    figures["verdict"]["perplexity"] = "worse"
    assert headline.sentence(figures, headline.lines(figures)) == "No, it got worse."
