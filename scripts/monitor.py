"""Watch the server: requests, tokens/s, TTFT, ITL, latency and cache, from its own Prometheus metrics.

Reads   <endpoint>/metrics; with a key, LOCKSTEP_API_KEY from the environment
Writes  nothing
Run     make monitor
        python scripts/monitor.py --config configs/demo.yaml --interval 1
        python scripts/monitor.py --config configs/demo.yaml --once        one line of JSON, for scripts

Every figure covers the last interval. The supervisor's own request for one token every five seconds is included;
requests that Lockstep refuses before they reach vLLM (401, 429 and the like) are not.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import contextlib
import json
import shutil
import sys
import time

from lockstep.client import health, vllm_metrics
from lockstep.client.vllm_metrics import Rates, Snapshot
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.settings import cli, commands
from lockstep.settings.tree import Settings

STATES = {
    "starting": "starting: the server loads the model",
    "checked": "being checked: the server opens when it has passed",
    "locked": "the server wants a key: set LOCKSTEP_API_KEY",
    "down": "not answering: start it with `{serve}`",
}
HOME, CLEAR = "\x1b[H", "\x1b[J"  # terminal sequences: cursor to the top; erase everything below it


def look(url: str, settings: Settings) -> Snapshot | str:
    """The server's figures, or why there are none."""
    kind, body = health.kind_of(url, "/metrics", address.serve_dir(settings))
    if kind != "ready":
        return STATES[kind].format(serve=commands.make("serve"))
    try:
        return vllm_metrics.read(body, time.monotonic())
    except (ValueError, KeyError):  # no figures, or other figures under these names
        return "what answers there is no vLLM: its /metrics are not in Prometheus' format"


def seconds(spread: tuple[float, float] | None) -> str:
    """p50 and p95, each in milliseconds or seconds."""
    if spread is None:
        return f"{'–':>10}{'–':>10}"
    return "".join(f"{f'{x * 1000:.0f} ms' if x < 1 else f'{x:.2f} s':>10}" for x in spread)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def lines_of(rates: Rates) -> list[str]:
    cache = f"{share(rates.kv_cache)} used, prefix hits {share(rates.cache_hit_rate)}, preempted {rates.preemptions}"
    finished = ", ".join(f"{n} {reason}" for reason, n in rates.finished.items()) or "none"
    return [
        f"requests   running {rates.running:<5} waiting {rates.waiting}",
        f"tokens/s   output {rates.output_tokens:<8.1f} prompt {rates.prompt_tokens:.1f}",
        f"{'':11}{'p50':>10}{'p95':>10}",
        f"{'TTFT':<11}{seconds(rates.ttft)}",
        f"{'ITL':<11}{seconds(rates.itl)}",
        f"{'latency':<11}{seconds(rates.e2e)}",
        f"KV cache   {cache}",
        f"finished   {finished}; errors {rates.errors}",
    ]


def watch(url: str, settings: Settings, interval: float) -> None:
    """Show the figures again and again until Ctrl-C: in place on a terminal, as one line each time elsewhere."""
    before: Snapshot | None = None
    terminal = sys.stdout.isatty()
    while True:
        seen = look(url, settings)
        if isinstance(seen, str):
            before, lines = None, [seen]
        else:
            rates = vllm_metrics.between(before, seen) if before else None
            before, lines = seen, lines_of(rates) if rates else ["ready; the first figures come in a moment"]
        now = time.strftime("%H:%M:%S")
        if terminal:
            width = shutil.get_terminal_size().columns
            shown = "\n".join(f"{line[:width]}\x1b[K" for line in [f"{url}  {now}", "", *lines])
            print(f"{HOME}{shown}{CLEAR}", flush=True)
        else:
            print(f"{now}  {'  '.join(' '.join(line.split()) for line in lines)}", flush=True)
        time.sleep(interval)


def once(url: str, settings: Settings, interval: float) -> None:
    """Print one interval's figures as a line of JSON."""
    snapshots = []
    for pause in (interval, 0):
        seen = look(url, settings)
        if isinstance(seen, str):
            raise UserError(f"{url}: {seen}")
        snapshots.append(seen)
        time.sleep(pause)
    rates = vllm_metrics.between(*snapshots)
    if rates is None:
        raise UserError(f"{url}: the server was started anew meanwhile; ask again")
    print(json.dumps(rates.as_json()))


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "serve")
    parser.add_argument("--base-url", help="the endpoint, ending in /v1 [from serve.host and serve.port]")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks [2]")
    parser.add_argument("--once", action="store_true", help="print one interval's figures as JSON, and end")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    if not 0.1 <= chosen.interval <= 3600:
        raise UserError("--interval must be between 0.1 and 3600 seconds")
    url = address.checked_url(chosen.base_url or address.url(settings))
    if chosen.once:
        once(url, settings, chosen.interval)
        return
    if sys.stdout.isatty():
        print(f"{HOME}{CLEAR}", end="")
    with contextlib.suppress(KeyboardInterrupt):
        watch(url, settings, chosen.interval)


if __name__ == "__main__":
    cli.run(main)
