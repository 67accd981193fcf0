"""Where a start is: overwritten on a terminal, a few lines elsewhere."""

import sys
from collections.abc import Iterator

import pytest

from lockstep.serving import start_progress
from lockstep.serving.start_progress import ERASED, MARK, Relayed, StartProgress


@pytest.fixture(params=[True, False])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: request.param)
    yield request.param


def test_a_step_is_one_line(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    now = [0.0]
    monkeypatch.setattr(start_progress.time, "monotonic", lambda: now[0])
    progress = StartProgress(lambda text: None, shown.append)
    for second in range(120):
        now[0] = float(second)
        progress.tell("vLLM loads the model", f"{second} s so far")
    if terminal:
        assert all(text.startswith(ERASED) and "\n" not in text for text in shown)
    else:
        assert len(shown) == 2 and all(text.startswith(MARK) and text.endswith(" s so far\n") for text in shown)


def test_a_server_in_the_background_is_shown_alike(terminal: bool) -> None:
    shown: list[str] = []
    told = ["loads: 1 s"]
    relayed = Relayed(lambda: told[-1], shown.append)
    relayed.add(f"starting vLLM\n{MARK}loads: 0 s\n")
    for text in ("loads: 2 s", "loads: 2 s", "loads: 3 s"):
        told.append(text)
        relayed.add(f"{MARK}{text}\n")
    relayed.end("in lockstep\n  curl …\n")
    whole = "".join(shown)
    assert whole.count("starting vLLM\n") == whole.count("in lockstep\n  curl …\n") == 1
    if terminal:
        assert whole == (
            f"starting vLLM\n  loads: 1 s{ERASED}  loads: 2 s{ERASED}  loads: 3 s{ERASED}in lockstep\n  curl …\n"
        )
    else:
        assert whole.count(MARK) == 4
