"""Looks on a fixed beat: none overlaps, and an endpoint that is down ends nothing."""

import itertools
import threading
import time

import pytest

from lockstep.errors import UserError
from lockstep.verification import repeating, verdict
from lockstep.verification.repeating import Outcome
from lockstep.verification.verdict import FAILED, PASSED, Proof


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), (" 1.5h ", 5400), ("1d", 86_400), ("30d", 2_592_000)]
)
def test_times_are_numbers_with_a_unit(text: str, seconds: float) -> None:
    assert repeating.interval(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1w", "0s", "0.5s", "31d", "-1h", "1h30m", "1e3s", "٣s"])
def test_other_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UserError, match=r"give a number with s, m, h or d, from 1s to 30d, such as 1h"):
        repeating.interval(text)


def results(status: str = PASSED, text: str = "") -> repeating.Results:
    proof = Proof(status, text=text)  # type: ignore[arg-type]
    return verdict.as_json(dict.fromkeys(verdict.PROOFS, Proof(PASSED)) | {"tokens": proof})


def test_what_cannot_be_looked_at_is_undecided_in_the_form_of_any_other_result() -> None:
    def down() -> repeating.Results:
        raise UserError("/v1/models: no answer\n(refused)")

    outcome = repeating.one_look(down)
    assert outcome.results["verdict"] == verdict.UNDECIDED and outcome.error == "/v1/models: no answer (refused)"
    assert outcome.results["proofs"].keys() == results()["proofs"].keys()
    assert outcome.line.endswith(f"  undecided  {outcome.seconds:.1f} s  /v1/models: no answer (refused)")

    def full() -> repeating.Results:
        raise OSError(28, "No space left on device")

    assert "No space left" in repeating.one_look(full).line


def test_a_line_says_what_failed_first() -> None:
    outcome = repeating.one_look(lambda: results(FAILED, "3 prompts differ"))
    assert "  not in lockstep  " in outcome.line and outcome.line.endswith("3 prompts differ")
    assert repeating.one_look(results).line.endswith(" s")


class Enough(Exception):
    pass


def test_a_look_that_takes_longer_than_the_beat_leaves_beats_out_and_never_overlaps() -> None:
    """Of beats every 0.2 s, looks of 0.3 s take every second one."""
    started: list[float] = []
    looking = threading.Lock()

    def slow() -> repeating.Results:
        assert looking.acquire(blocking=False)
        started.append(time.monotonic())
        time.sleep(0.3)
        looking.release()
        return results()

    def tell(_: Outcome) -> None:
        if len(started) == 3:
            raise Enough

    with pytest.raises(Enough):
        repeating.forever(slow, 0.2, tell)
    gaps = [b - a for a, b in itertools.pairwise(started)]
    assert all(gap >= 0.38 for gap in gaps), gaps
