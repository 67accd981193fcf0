"""Is it the model that was trained? For adapters, merged folders, exports and endpoints that any tool made.

Reads   what is given of: a base, an adapter, a merged folder, an export, an endpoint, the training file, a template
Writes  verify.json and verify.html, in outputs/verify/ or where --json and --html say
Run     make verify ARGS="--base models/x --adapter their/adapter --merged their/merged"
        python scripts/verify.py --base models/x --adapter their/adapter --endpoint http://127.0.0.1:8000/v1
        python scripts/verify.py --bundle run.lockstep --endpoint http://127.0.0.1:8000/v1

No run of ours is needed. A run's folder does for --adapter and --merged, too. With LOCKSTEP_API_KEY in the environment
the endpoint is asked with that key. The exit code is 0 where all that was given is the trained model, 1 where
something is another, 3 where that cannot be told, and 2 where an option is wrong.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
from pathlib import Path

from lockstep import paths
from lockstep.artifacts import atomic, filenames
from lockstep.endpoint import address
from lockstep.errors import UserError
from lockstep.settings import cli
from lockstep.verification import endpoint_expectation, endpoint_proofs, files, report, subjects, verdict
from lockstep.verification.verdict import Proof

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
    names = ("base", "adapter", "merged", "export", "endpoint", "model", "data", "template", "bundle")
    return {name: str(value) for name in names if (value := getattr(chosen, name))}


def main() -> int:
    chosen = options()
    if not any((chosen.adapter, chosen.merged, chosen.export, chosen.endpoint)):
        raise UserError("nothing to verify: give --adapter, --merged, --export or --endpoint; --help lists the options")
    url = address.checked_url(chosen.endpoint) if chosen.endpoint else None
    given = subjects.recognised(chosen.base, chosen.adapter, chosen.merged, chosen.export, chosen.data, chosen.template)
    written_files(chosen)  # a wrong path is told before time is spent
    looks: list[dict[str, Proof]] = [files.files_proofs(given)]
    if url:
        expectation = endpoint_expectation.of_subjects(given, cli.say)  # or of chosen.bundle
        looks.append(endpoint_proofs.endpoint_proofs(expectation, url, chosen.model, cli.say))
    results = verdict.as_json(files.merged(*looks))
    file, page = written_files(chosen)
    atomic.write_json(file, results)
    report.write(results, words_of(chosen), page)
    for line in report.lines(results):
        print(line)
    print(f"{paths.label(file)}, {paths.label(page)}")
    return verdict.EXIT_CODES[results["verdict"]]


if __name__ == "__main__":
    cli.run(main)
