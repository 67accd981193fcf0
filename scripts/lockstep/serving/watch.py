"""The watch over an open server: it is closed while it hangs."""

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

from lockstep.endpoint.server_note import State
from lockstep.serving import probe
from lockstep.serving.launch_plan import LaunchPlan
from lockstep.serving.probe import Server, Unanswered
from lockstep.settings import cli

PROGRESS = ("vllm:generation_tokens_total", "vllm:prompt_tokens_total")


def until_it_ends(
    process: "subprocess.Popen[bytes]", server: Server, plan: LaunchPlan, opened: Path, note: Callable[[State], None]
) -> None:
    """Until the server ends: ask for a token now and then, and let nobody in while none comes.

    Args:
        opened: the file by which the middleware knows that others are let in.
        note: keeps the state in server.json.
    """
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(plan.timing.pause)
            return
        before = _progress(server)
        try:
            probe.canary(server, plan.model, plan.canary, plan.timing.patience)
            alive = True
        except Unanswered:
            now = _progress(server)
            alive = now is not None and now != before  # a full server lets a canary wait, and works all the same
        if alive and not opened.exists():
            opened.touch()
            cli.say("the server answers again: open", flush=True)
            with contextlib.suppress(OSError):  # a full disk: what serves goes on
                note("open")
        elif not alive and opened.exists() and process.poll() is None:
            opened.unlink()
            cli.say("the server does not answer: closed until it does", to_stderr=True, flush=True)
            with contextlib.suppress(OSError):
                note("not answering")


def _progress(server: Server) -> str | None:
    """The engine's token counters; None where it does not tell them."""
    try:
        text = str(server.ask("/metrics", timeout=5))
    except Unanswered:
        return None
    return "\n".join(line for line in text.splitlines() if line.startswith(PROGRESS))
