"""Looking again and again: one look at a time, on a fixed beat, whatever becomes of the endpoint meanwhile."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from lockstep.errors import UserError
from lockstep.verification import verdict
from lockstep.verification.verdict import UNKNOWN, Proof

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
SHORTEST, LONGEST = 1, 30 * 86_400  # seconds between two looks

Results = dict[str, Any]  # as verdict.as_json gives them
Look = Callable[[], Results]


@dataclass(frozen=True)
class Outcome:
    """What one look gave.

    Attributes:
        results: as in verify.json.
        started: when, in seconds since 1970.
        seconds: how long it took.
        error: why it gave nothing, in a line; empty where it did.
    """

    results: Results
    started: float
    seconds: float
    error: str = ""

    @property
    def line(self) -> str:
        """For people: time, verdict, and what is wrong or not known."""
        proofs = self.results["proofs"]
        worst = [proof for proof in proofs.values() if proof["status"] != verdict.PASSED and proof["text"]]
        worst.sort(key=lambda proof: proof["status"] != verdict.FAILED)
        why = self.error or (worst[0]["text"] if worst else "")
        when = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started))
        words = self.results["verdict"].replace("_", " ")
        return f"{when}  {words}  {self.seconds:.1f} s{f'  {why}' if why else ''}"


def interval(text: str) -> float:
    """Seconds between two looks, from text such as 90s, 15m, 1h or 1d.

    Raises:
        UserError: it is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0
    if not SHORTEST <= seconds <= LONGEST:
        raise UserError(f"--every {text}: give a number with s, m, h or d, from 1s to 30d, such as 1h")
    return seconds


def one_look(look: Look) -> Outcome:
    """Look once. What cannot be looked at, such as an endpoint that is down, is undecided, and no end of anything."""
    started, clock, error = time.time(), time.monotonic(), ""
    try:
        results = look()
    except (UserError, OSError) as problem:
        error = " ".join(str(problem).split())
        results = without_results(error)
    return Outcome(results, started, time.monotonic() - clock, error)


def without_results(error: str) -> Results:
    """What verify.json says where there was nothing to look at."""
    nothing = Proof(UNKNOWN, text=error, next="nothing else needs to be started: the next look comes by itself")
    return verdict.as_json(dict.fromkeys(verdict.PROOFS, nothing))


def forever(look: Look, seconds: float, tell: Callable[[Outcome], None]) -> NoReturn:
    """Look every so many seconds, one look after the other; a beat that falls into a look is left out.

    Args:
        tell: is given each outcome.
    """
    first = time.monotonic()
    while True:
        tell(one_look(look))
        beats = int((time.monotonic() - first) // seconds) + 1
        time.sleep(max(0.0, first + beats * seconds - time.monotonic()))
