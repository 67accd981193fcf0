"""The catalogue lists what is computed, and nothing else."""

from lockstep.evaluation import forgetting, scores
from lockstep.evaluation.catalogue import ANSWERS, CATALOGUE, FORGETTING, in_order, scale
from lockstep.evaluation.measures import Measure


def all_answers() -> dict[str, Measure]:
    """Answers for which every measure is computed: their references are labels and JSON objects at once."""
    references = ['{"a": 1}', '{"a": 2}'] * 5
    count = [1] * len(references)
    return scores.score_answers(
        references,
        references,
        finish_reasons=["stop"] * 10,
        output_tokens=count,
        seconds=count,
        nats=count,
        tokens=count,
    )


def test_what_is_computed_is_listed_and_what_is_listed_is_computed() -> None:
    assert all_answers().keys() == ANSWERS.keys()


def test_directions_and_bounds_are_those_of_the_catalogue() -> None:
    figures = all_answers() | {
        "general_questions": forgetting.share_right([], []),
        "prose_perplexity": forgetting.prose_perplexity([], []),
    }
    assert figures.keys() == CATALOGUE.keys() == ANSWERS.keys() | FORGETTING.keys()
    for name, figure in figures.items():
        assert (figure.better, figure.bounds) == scale(name), name


def test_every_measure_is_explained_and_lower_is_said_where_it_is_better() -> None:
    for name, entry in CATALOGUE.items():
        assert entry.meaning, name
        assert entry.meaning.endswith("lower is better") == (entry.better < 0), name


def test_the_order_is_the_catalogues_and_strangers_come_last() -> None:
    assert in_order({"latency", "zeal", "bleu", "exact_match", "ardour"}) == [
        "exact_match",
        "bleu",
        "latency",
        "ardour",
        "zeal",
    ]
