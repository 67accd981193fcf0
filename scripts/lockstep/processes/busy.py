"""What a stage shows while it works: a bar on a terminal once something takes over two seconds, few lines elsewhere.

All of it goes to stderr. Of a training in several processes only the first shows anything.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lockstep.processes import distributed
from lockstep.text.language import phrase, translated

SHOWN_AFTER = 2.0  # seconds
TICK = 0.5  # seconds between two looks at a line that counts seconds
LINE_AFTER, LINE_EVERY = 60.0, 60.0  # seconds, where there is no terminal: logs must not be flooded

# What is counted, as the catalogues have it: these words mean other things elsewhere.
UNIT = " (unit)"
UNITS = (
    "steps (unit)", "rows (unit)", "files (unit)", "tensors (unit)", "batches (unit)", "chunks (unit)",
    "answers (unit)",
)  # fmt: skip

Step = TypeVar("Step")


def unit_name(unit: str) -> str:
    """A unit of work, such as `rows`, in the reader's language."""
    return phrase(unit + UNIT).removesuffix(UNIT)


def steps(work: Iterable[Step], what: str, total: int | None = None, unit: str = "steps") -> Iterator[Step]:
    """The same steps, with a bar.

    Args:
        what: that takes long, for the reader.
        total: how many steps there are, if `work` cannot tell.
    """
    from tqdm import tqdm

    if not distributed.FIRST:
        yield from work
        return
    bar = tqdm(
        work,
        desc=translated(what),
        total=total,
        unit=f" {unit_name(unit)}",
        delay=SHOWN_AFTER,
        disable=None,
        leave=False,
    )
    if not bar.disable:
        yield from bar
        return
    started = time.monotonic()
    due = started + LINE_AFTER
    for number, step in enumerate(work):
        if time.monotonic() >= due:
            due = time.monotonic() + LINE_EVERY
            of_all = f" of {bar.total}" if bar.total else ""
            seconds, name = time.monotonic() - started, unit_name(unit)
            _say(f"{translated(f'{what}: {number}{of_all} {name} after {seconds:.0f} s')}\n")
        yield step


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something goes on that has no steps: its seconds on a terminal, one line elsewhere.

    Nothing is shown of what is over sooner than that. The block may print lines of its own.
    """
    if not distributed.FIRST:
        yield
        return
    done, what = threading.Event(), translated(what)
    watch = threading.Thread(target=_count if sys.stderr.isatty() else _tell_once, args=(what, done), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _count(what: str, done: threading.Event) -> None:
    started = time.monotonic()
    if done.wait(SHOWN_AFTER):
        return
    while not done.wait(TICK):
        _say(f"\r{what} … {time.monotonic() - started:.0f} s \x1b[K")
    _say("\r\x1b[K")


def _tell_once(what: str, done: threading.Event) -> None:
    if not done.wait(LINE_AFTER):
        _say(f"{what} …\n")


def _say(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads it any more: the work goes on
        pass
