"""Stage 05: did it get better? Base and tuned model answer the same held-out rows, and one report says so.

Reads   outputs/<run>/data/ (test rows, which no earlier stage uses), adapter/, merged/
        answers of the servers that it starts one after the other, or of those at --evaluate.base_url and tuned_url
Writes  outputs/<run>/eval/: metrics.json, predictions.jsonl, report.html
        outputs/<run>/answers/: what has been answered so far; outputs/<run>/sheet.csv: answers for a person to judge
Run     make evaluate
        python scripts/05_evaluate.py --config configs/demo.yaml
        python scripts/05_evaluate.py --config configs/demo.yaml --report     (only writes the report again)

Both models run under the same engine settings, template and sampling: greedy, unless asked otherwise.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, lineage, manifest
from lockstep.artifacts.stage import Stage
from lockstep.client.batch_file import AnswerRecord
from lockstep.data import user_files
from lockstep.endpoint import address, server_note
from lockstep.errors import Terminated, UserError
from lockstep.evaluation import contestants
from lockstep.evaluation.contestants import Case, Contestant, Task
from lockstep.processes import busy
from lockstep.serving import server_control
from lockstep.settings import cli, commands
from lockstep.settings.schema import GREEDY, Sampling
from lockstep.settings.tree import Settings
from lockstep.text import language

FORCED = "forced.json"  # beside the answers: which evaluation --force replaces
LIKELIHOODS = ("likelihood", "prose", "reference")  # tasks that ask for log-probabilities and not for answers
# columns of predictions.jsonl and metrics.json that are no run's
RESERVED = {"base", "tuned", "row", "messages", "wanted"}


def progress_bar(description: str, rows: int, done: int, records: Iterator[AnswerRecord]) -> Iterator[AnswerRecord]:
    """The same records, counted by a progress bar in a terminal."""
    from tqdm import tqdm

    shown, unit = language.translated(description), f" {busy.unit_name('rows')}"
    return iter(tqdm(records, desc=shown, total=rows, initial=done, unit=unit, disable=None))


# ---- who answers what ----


def contestants_of(settings: Settings) -> list[Contestant]:
    """Base, tuned and the other runs, each with an identity that tells it from other models and engine settings."""
    evaluate, run_dir = settings.evaluate, settings.run_dir
    template = manifest.sha256_of(run_dir / filenames.ADAPTER / filenames.CHAT_TEMPLATE)
    has_manifest = (settings.model.folder / filenames.MANIFEST).exists()
    base_digest = manifest.read(settings.model.folder).digest if has_manifest else ""
    own_name = address.tuned_name(settings)

    base = contestant("base", settings, settings.run, f"{base_digest} {template}", "base")
    if evaluate.base_url:  # a server of the adapter offers its base as well
        base = on_server(base, evaluate.base_url, address.base_name(settings), own_name)
    tuned = contestant("tuned", settings, settings.run, merged_digest(settings.run), "merged")
    if evaluate.tuned_url:
        tuned = on_server(tuned, evaluate.tuned_url, own_name)
    if tuned.url and (tuned.url, tuned.model) == (base.url, base.model):
        raise UserError(f"--evaluate.base_url and tuned_url lead to the same model, {tuned.model} at {tuned.url}")
    others = [contestant(run, settings, run, merged_digest(run), "merged") for run in evaluate.runs]
    for who, run in zip((base, tuned, *others), (settings.run, settings.run, *evaluate.runs), strict=True):
        check_not_served(who, run)
    return [base, tuned, *others]


def check_not_served(who: Contestant, run: str) -> None:
    """Refuse now, and not after the answers of others, where a server of this run is in the way of the one to come."""
    folder = paths.run_dir(run) / address.FOLDERS[who.mode == "base"]
    note = None if who.url else server_note.current(folder)
    if note:
        asked = ""
        if who.name in ("base", "tuned"):
            asked = f", or have that one asked with --evaluate.{who.name}_url {note.url}"
        raise UserError(
            f"{paths.label(folder.parent)} is served at {note.url}, and the evaluation starts a server of its own: "
            f"run `{server_control.stop_command(folder)}` first{asked}"
        )


def contestant(name: str, settings: Settings, run: str, weights: str, mode: str) -> Contestant:
    """A contestant on a server of its own. All share the engine's settings; the rest is in the run's manifests."""
    serve = cli.words_for(settings, "serve", without=("mode", "host", "port", "adapters", "served_model_name"))
    model = run + address.BASE_SUFFIX if mode == "base" else run
    return Contestant(name, model, f"{weights} {json.dumps(engine_of(settings))}", mode, ("--run", run, *serve))


def merged_digest(run: str) -> str:
    return manifest.require(paths.run_dir(run) / filenames.MERGED, "merge").digest


def engine_of(settings: Settings) -> dict[str, Any]:
    """The server's settings on which answers depend."""
    keep = {"dtype", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "enforce_eager", "vllm_args"}
    return settings.serve.model_dump(mode="json", include=keep)


def on_server(who: Contestant, url: str, *names: str) -> Contestant:
    """A contestant on a server that is running already: the first model of these names, or the only one.

    What weights that server has is not known, so its address and the model's name become part of the identity.
    """
    from dataclasses import replace

    from lockstep.client.openai_client import Endpoint

    url = address.checked_url(url)
    model = Endpoint(url, notice=cli.say).model(*names)
    cli.say(f"{who.name}: {model} at {url}")
    return replace(who, url=url, model=model, identity=f"{url} {model} {who.identity}")


def tasks_of_all(settings: Settings, cases: list[Case], panel: Any) -> list[Task]:
    """What every contestant is asked."""
    evaluate, longest = settings.evaluate, settings.serve.max_model_len
    paragraphs = contestants.encoded(settings.run_dir / filenames.ADAPTER, [prose.text for prose in panel.prose])
    general = [contestants.question(question.question) for question in panel.questions]
    return [
        contestants.answers(cases, sampling_of(settings), evaluate, longest),
        contestants.likelihoods([case.input_ids for case in cases], [case.places for case in cases], "likelihood"),
        contestants.answers(general, GREEDY, evaluate, longest, "general"),
        contestants.likelihoods(paragraphs, [range(1, len(ids)) for ids in paragraphs], "prose"),
    ]


def tasks_of_tuned(settings: Settings, cases: list[Case], recorded: list[Any]) -> list[Task]:
    """What only the tuned model is asked: the rows of reference.json, and the first test rows, sampled differently."""
    evaluate, longest = settings.evaluate, settings.serve.max_model_len
    ids, places = [row["input_ids"] for row in recorded], [row["places"] for row in recorded]
    first_cases = cases[: evaluate.sampling_rows]
    return [
        contestants.likelihoods(ids, places, "reference"),
        *(
            contestants.answers(first_cases, sampling, evaluate, longest, f"sampling-{number}")
            for number, sampling in enumerate(samplings(settings))
        ),
    ]


def sampling_of(settings: Settings) -> Sampling:
    return GREEDY if settings.evaluate.greedy else settings.sampling


def samplings(settings: Settings) -> list[Sampling]:
    """Greedy, the run's own sampling, and that with one setting changed at a time; empty if no rows are asked so."""
    if not settings.evaluate.sampling_rows:
        return []
    own = settings.sampling.model_copy(update={"seed": settings.evaluate.seed})
    changes = [
        ("temperature", 0.2),
        ("temperature", 0.9),
        ("top_p", 0.5),
        ("top_p", 0.95),
        ("repetition_penalty", 1.0),
        ("repetition_penalty", 1.3),
    ]
    return [GREEDY, own, *(own.model_copy(update={name: value}) for name, value in changes)]


# ---- the stage ----


def evaluate(settings: Settings, work: Path) -> dict[str, Any]:
    """Ask, measure, and write everything into `work`; returns what metrics.json holds."""
    from lockstep.evaluation import forgetting, human_sheet, report_page, verdict

    run_dir, section = settings.run_dir, settings.evaluate
    cases = contestants.cases(run_dir / filenames.DATA, section.rows)
    panel = forgetting.load(paths.data_file(section.panel)) if section.panel else forgetting.load()
    recorded = atomic.read_json(run_dir / filenames.ADAPTER / filenames.REFERENCE)["rows"]
    recorded = [row for row in recorded if len(row["input_ids"]) < settings.serve.max_model_len]

    common, more = tasks_of_all(settings, cases, panel), tasks_of_tuned(settings, cases, recorded)
    answers = {}
    for who in contestants_of(settings):
        tasks = common + more if who.name == "tuned" else common
        answers[who.name] = contestants.collect(
            who, tasks, run_dir / filenames.ANSWERS, section.concurrency, cli.say, progress_bar
        )

    with busy.waiting("comparing the answers"):
        metrics = verdict.metrics(
            cases, answers, panel, recorded, run_dir / filenames.DATA / filenames.TRAIN, section.seed
        )
    metrics["asked"] = {"rows": section.rows, "max_tokens": section.max_tokens}
    metrics["sampling"] = sampling_of(settings).model_dump(exclude_none=True)
    metrics["samplings"] = [
        verdict.of_sampling(cases, sampling, answers["tuned"][f"sampling-{number}"])
        for number, sampling in enumerate(samplings(settings))
    ]
    predictions, sheet = work / filenames.PREDICTIONS, run_dir / filenames.SHEET
    with predictions.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in verdict.predictions(cases, answers))
    metrics["people"] = human_sheet.read(sheet, predictions)
    human_sheet.write(sheet, predictions, section.sheet_rows, section.seed)
    atomic.write_json(work / filenames.METRICS, metrics)
    report_page.write(run_dir, work, work / filenames.REPORT)
    return metrics


def in_this_language(folder: Path) -> bool:
    """Whether the report is in the language that messages are in now."""
    from lockstep.evaluation import report_page

    with (folder / filenames.REPORT).open(encoding="utf-8") as page:
        return report_page.opening_tag() in page.read(1000)


def rebuild(settings: Settings) -> None:
    """Write the report again from what is there, with what a person has written into the sheet since."""
    from lockstep.evaluation import human_sheet, report_page

    run_dir = settings.run_dir
    folder = run_dir / filenames.EVALUATION
    if not run_dir.is_dir():
        raise UserError(f"there is no run {settings.run}: {paths.label(run_dir)} is missing")
    Stage("evaluate", folder, {}, []).recover()
    if not (folder / filenames.MANIFEST).exists():
        report_page.write(run_dir, None, run_dir / filenames.REPORT)
        evaluate_it = commands.make("evaluate")
        return cli.say(
            f"{paths.label(run_dir)}/report.html is written, without an evaluation: `{evaluate_it}` makes one"
        )
    record = manifest.read(folder)
    stage = Stage(
        "evaluate",
        folder,
        record.config,
        [paths.resolve_label(name) for name in record.inputs],
        force=True,
        config_file=record.config_file,
    )
    manifest.check_hashes(folder, record)
    if stage.inputs != record.inputs:
        raise UserError(
            f"{paths.label(folder)} was made from another model or other data than what is there now: "
            f"run `{commands.make('evaluate', '--force')}`"
        )
    stage.metrics = record.metrics
    with stage.writing() as work:
        shutil.copyfile(folder / filenames.PREDICTIONS, work / filenames.PREDICTIONS)
        metrics = report_page.complete(folder)
        metrics["people"] = human_sheet.read(run_dir / filenames.SHEET, work / filenames.PREDICTIONS)
        atomic.write_json(work / filenames.METRICS, metrics)
        report_page.write(run_dir, work, work / filenames.REPORT)
    cli.say(f"{paths.label(folder)}/report.html is written")


def show(metrics: dict[str, Any], run_dir: Path) -> None:
    """Print the headline, the table of measures and what to do next, and warn of rows without an answer."""
    from lockstep.evaluation import report_page, terminal

    sheet = paths.label(run_dir / filenames.SHEET)
    for line in terminal.lines(metrics, sheet, report_page.steps(run_dir, metrics)):
        print(line)
    for name, counts in metrics["unanswered"].items():
        for kind, count in counts.items():
            cli.say(f"warning: {unanswered(name, kind, count)}", to_stderr=True)


def unanswered(name: str, kind: str, count: int) -> str:
    """What it means that so many rows of a contestant have no answer."""
    if kind in LIKELIHOODS:
        return f"{count} rows of {name} ({kind}) were refused by its server and are left out"
    consequence = "count as wrong" if kind == "answers" else "are left out"
    return f"{count} rows of {name} have no answer ({kind}) and {consequence}: --force asks all of them again"


def terminate(number: int, _: Any) -> None:
    """On a signal that asks to end: the server ends with this program, and the answers so far stay."""
    raise Terminated("terminated; run the same command again to go on")


def forget_answers(answers: Path, folder: Path) -> None:
    """Remove the answers of an earlier evaluation, but not those of a forced one that was stopped before its end."""
    note = answers / FORCED
    replaces = manifest.identity(folder)
    if not note.exists() or atomic.read_json(note) != replaces:
        shutil.rmtree(answers, ignore_errors=True)
        answers.mkdir()
        atomic.write_json(note, replaces)


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "evaluate", "serve")
    cli.stage_options(parser)
    parser.add_argument("--report", action="store_true", help="only write the report again, from the files that exist")
    return parser.parse_args()


def inputs_of(settings: Settings) -> list[Path]:
    """What the evaluation is made from; settings that contradict each other are refused."""
    run_dir, section = settings.run_dir, settings.evaluate
    if taken := RESERVED & set(section.runs):
        raise UserError(
            f"--evaluate.runs: the name {min(taken)} has a meaning of its own in the metrics: give the run another name"
        )
    if section.rows is not None and section.sampling_rows > section.rows:
        raise UserError("--evaluate.sampling_rows is more than --evaluate.rows")
    inputs = [run_dir / filenames.DATA, run_dir / filenames.ADAPTER, run_dir / filenames.MERGED]
    inputs += [paths.run_dir(run) / filenames.MERGED for run in section.runs]
    if section.panel:
        inputs.append(paths.data_file(section.panel))
    return inputs


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    run_dir = settings.run_dir
    folder = run_dir / filenames.EVALUATION
    if chosen.check:
        sys.exit(user_files.check_exit_code(settings, "evaluate", folder))
    if chosen.report:
        return rebuild(settings)
    user_files.check_paths(settings, "evaluate")
    commands.then("serve")

    # --- inputs ---
    settings, _ = lineage.require(settings, run_dir / filenames.MERGED, "merge")
    lineage.require(settings, run_dir / filenames.ADAPTER, "train")
    if newer := lineage.newer_rows(run_dir):
        cli.say(f"note: {newer}")
    sections = settings.sections("model", "data", "method", "evaluate", "sampling") | {"engine": engine_of(settings)}
    stage = Stage("evaluate", folder, sections, inputs_of(settings), chosen.force, config_file=settings.config_file)
    if record := stage.finished():
        cli.say(f"{paths.label(folder)} is up to date ({manifest.short(record.digest)})")
        return None if in_this_language(folder) else rebuild(settings)

    # --- work, save, manifest last ---
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup a hang-up is to be ignored
        signal.signal(signal.SIGHUP, terminate)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with stage.writing() as work:
        if chosen.force:
            forget_answers(run_dir / filenames.ANSWERS, folder)
        metrics = evaluate(settings, work)
        stage.metrics = {
            side: {name: metrics[side][name]["value"] for name in metrics[side]} for side in ("base", "tuned")
        }
    (run_dir / filenames.ANSWERS / FORCED).unlink(missing_ok=True)
    show(metrics, run_dir)
    cli.say(f"\n{paths.label(folder)} is complete; look at {paths.label(folder)}/report.html")
    again = commands.make("report")
    cli.say(f"{paths.label(run_dir)}/sheet.csv holds answers for you to judge; `{again}` reads them back")


if __name__ == "__main__":
    cli.run(main)
