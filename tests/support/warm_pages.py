"""A process that has imported what the chat page imports. Pages are forked from it, as those imports take seconds.

It reads one page a line, as JSON: `argv`, `environment`, `folder` and `output`, the file that the page prints to. It
answers with the page's process id. Its own end is that of the test that started it.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # as the page has it, before Gradio is imported

from lockstep.chat import page as _page  # noqa: F401 - what takes long


def become(argv: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    """In the forked process: be the program."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT, 0o600), 1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv, sys.path[0:0] = argv, [str(Path(argv[0]).parent)]
    runpy.run_path(argv[0], run_name="__main__")


def main() -> None:
    gc.freeze()  # or each fork looks through all that was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for pages that ended
    for line in sys.stdin:
        task = json.loads(line)
        if pid := os.fork():
            sys.stdout.write(f"{pid}\n")
            sys.stdout.flush()
            continue
        become(**task)
        return


if __name__ == "__main__":
    main()
