"""Is it the model that was trained? For adapters, merged folders, exports and endpoints that any tool made.

Reads   what is given of: a base, an adapter, a merged folder, an export, an endpoint, the training file, a template
Writes  verify.json and verify.html, in outputs/verify/ or where --json and --html say
Run     make verify ARGS="--base models/x --adapter their/adapter --merged their/merged"
        python scripts/verify.py --base models/x --adapter their/adapter --endpoint http://127.0.0.1:8000/v1
        python scripts/verify.py --bundle run.lockstep --endpoint http://127.0.0.1:8000/v1
        python scripts/verify.py --bundle run.lockstep --endpoint http://127.0.0.1:8000/v1 --every 1h --metrics 9877

No run of ours is needed. A run's folder does for --adapter and --merged, too. With LOCKSTEP_API_KEY in the environment
the endpoint is asked with that key. The exit code is 0 where all that was given is the trained model, 1 where
something is another, 3 where that cannot be told, and 2 where an option is wrong.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.endpoint import address
from lockstep.errors import Terminated, UserError
from lockstep.settings import cli
from lockstep.verification import (
    bundle_look,
    endpoint_expectation,
    endpoint_proofs,
    files,
    gauge,
    repeating,
    report,
    signature,
    subjects,
    verdict,
)
from lockstep.verification.bundle_look import BundleLook, Tell
from lockstep.verification.repeating import Outcome

JSON, PAGE = "verify.json", "verify.html"


def options() -> argparse.Namespace:
    parser = cli.plain_parser(__doc__ or "")
    given = parser.add_argument_group("what is given")
    given.add_argument("--base", type=Path, metavar="FOLDER", help="the model that was trained, as published")
    given.add_argument("--adapter", type=Path, metavar="FOLDER", help="what was trained, as PEFT saved it")
    given.add_argument("--merged", type=Path, metavar="FOLDER", help="base and adapter in one, as safetensors")
    given.add_argument("--export", type=Path, metavar="PATH", help="a GGUF file, or a folder compressed for vLLM")
    given.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, such as http://127.0.0.1:8000/v1")
    given.add_argument("--model", metavar="NAME", help="of the model at the endpoint [the only one there]")
    given.add_argument("--data", type=Path, metavar="FILE", help="the file that was trained on, in any layout")
    given.add_argument("--template", type=Path, metavar="FILE", help="the chat template of the training, as Jinja")
    given.add_argument("--bundle", type=Path, metavar="FILE", help="what `make bundle` packed of a run")
    given.add_argument("--public-key", type=Path, metavar="FILE", help="refuse a bundle that this key did not sign")
    again = parser.add_argument_group("again and again")
    again.add_argument("--every", metavar="TIME", help="look again, such as 1h or 15m, until Ctrl-C or SIGTERM")
    again.add_argument("--metrics", metavar="PORT", help="answer Prometheus there, on this machine or at ADDRESS:PORT")
    again.add_argument("--metrics-file", type=Path, metavar="FILE", help="the same for node_exporter's textfiles")
    results = parser.add_argument_group("results")
    results.add_argument("--json", type=Path, metavar="FILE", help=f"[outputs/verify/{JSON}]")
    results.add_argument("--html", type=Path, metavar="FILE", help=f"[{PAGE} beside it]")
    return parser.parse_args()


def written_files(chosen: argparse.Namespace) -> tuple[Path, Path]:
    """Where verify.json and verify.html go; the page beside the other one where nothing else is said."""
    file: Path = chosen.json or (chosen.html.parent if chosen.html else paths.OUTPUTS / filenames.VERIFY) / JSON
    page: Path = chosen.html or file.parent / PAGE
    for path in (file, page):
        paths.make_parent(path)
        if path.is_dir():
            raise UserError(f"{paths.label(path)} is a folder: name a file")
    return file, page


def words_of(chosen: argparse.Namespace) -> dict[str, str]:
    """What was given, for the page."""
    names = ("base", "adapter", "merged", "export", "endpoint", "model", "data", "template", "bundle", "public_key")
    return {name: str(value) for name in names if (value := getattr(chosen, name))}


def check(chosen: argparse.Namespace) -> None:
    """Refuse options that do not go together, and wrong paths, before time is spent. Raises UserError."""
    if not any((chosen.adapter, chosen.merged, chosen.export, chosen.endpoint)):
        raise UserError("nothing to verify: give --adapter, --merged, --export or --endpoint; --help lists the options")
    if chosen.bundle:
        others = ("base", "export", "data", "template")
        bundle_look.refuse_other_options({name: getattr(chosen, name) for name in others})
    elif chosen.public_key:
        raise UserError("--public-key belongs to a --bundle")
    if chosen.metrics and not chosen.every:
        raise UserError("--metrics needs --every: a program that ends answers nobody; or write a --metrics-file")
    if chosen.endpoint:
        address.checked_url(chosen.endpoint)
    if chosen.every:
        repeating.interval(chosen.every)
    if chosen.metrics:
        gauge.address(chosen.metrics)
    given_subjects(chosen)
    written_files(chosen)


def given_subjects(chosen: argparse.Namespace) -> subjects.Subjects:
    return subjects.recognised(chosen.base, chosen.adapter, chosen.merged, chosen.export, chosen.data, chosen.template)


def results_of(chosen: argparse.Namespace, packed: BundleLook | None, tell: Tell) -> dict[str, Any]:
    """One look at all that was given, as verify.json has it."""
    url = address.checked_url(chosen.endpoint) if chosen.endpoint else None
    if packed:
        looks = packed.of_folders(chosen.adapter, chosen.merged)
        looks += [packed.of_endpoint(url, chosen.model, tell)] if url else []
        return verdict.as_json(files.merged(*looks))
    given = given_subjects(chosen)
    looks = [files.files_proofs(given)]
    if url:
        expectation = endpoint_expectation.of_subjects(given, tell)
        looks.append(endpoint_proofs.endpoint_proofs(expectation, url, chosen.model, tell))
    return verdict.as_json(files.merged(*looks))


def write(chosen: argparse.Namespace, results: dict[str, Any]) -> tuple[Path, Path]:
    """Write verify.json and verify.html; returns where they are."""
    file, page = written_files(chosen)
    atomic.write_json(file, results)
    report.write(results, words_of(chosen), page)
    return file, page


def watch(chosen: argparse.Namespace, packed: BundleLook | None, seconds: float) -> None:
    """Look again and again, a line each time, until Ctrl-C or SIGTERM: that is how it ends, and no error."""

    def tell(outcome: Outcome) -> None:
        metrics.record(outcome)
        cli.say(outcome.line, flush=True)
        try:
            write(chosen, outcome.results)
            if chosen.metrics_file:
                metrics.write(chosen.metrics_file)
        except (OSError, UserError) as error:  # a full disk is no reason to stop looking
            cli.say(f"error: {error}", to_stderr=True)

    def end(*_: object) -> None:
        raise Terminated

    metrics = gauge.Metrics(labels_of(chosen, packed), seconds)
    if chosen.metrics:
        metrics.serve(*gauge.address(chosen.metrics))
    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(KeyboardInterrupt, Terminated):
        repeating.forever(lambda: results_of(chosen, packed, lambda step: None), seconds, tell)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def labels_of(chosen: argparse.Namespace, packed: BundleLook | None) -> dict[str, str]:
    """What is verified, for metrics."""
    name = str(chosen.adapter or chosen.merged or chosen.export or chosen.base)
    return packed.labels() if packed else {"run": name, "bundle": ""}


def opened(chosen: argparse.Namespace) -> BundleLook:
    """The bundle that was given, checked."""
    packed = BundleLook(chosen.bundle, chosen.public_key)
    packed.require(chosen.adapter, chosen.merged)
    if packed.bundle.signed_by and not chosen.public_key:
        key = packed.bundle.signed_by[: signature.SHOWN]
        cli.say(f"note: the bundle says that the key {key} signed it; without --public-key nobody knows")
    return packed


def main() -> int:
    chosen = options()
    check(chosen)
    with contextlib.ExitStack() as stack:
        packed = stack.enter_context(opened(chosen)) if chosen.bundle else None
        if chosen.every:
            watch(chosen, packed, repeating.interval(chosen.every))
            stack.close()
            sys.stdout.flush()
            os._exit(0)  # a request that an endpoint does not answer would hold the end up
        outcome = repeating.one_look(lambda: results_of(chosen, packed, cli.say))
        if chosen.metrics_file:
            metrics = gauge.Metrics(labels_of(chosen, packed))
            metrics.record(outcome)
            metrics.write(chosen.metrics_file)
    file, page = write(chosen, outcome.results)  # also of an error: nobody should take the last one for this one
    if outcome.error:
        raise UserError(outcome.error)
    for line in report.lines(outcome.results):
        print(line)
    print(f"{paths.label(file)}, {paths.label(page)}")
    return verdict.EXIT_CODES[outcome.results["verdict"]]


if __name__ == "__main__":
    cli.run(main)
