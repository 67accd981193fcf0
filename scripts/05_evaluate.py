"""Stage 05: did it get better? Base and tuned model answer the same held-out rows, and one report says so.

Reads   outputs/<run>/data/ (test rows, which nothing before has touched), adapter/, merged/
        the servers that it starts, one after the other, or those of --evaluate.base_url and tuned_url
Writes  outputs/<run>/eval/: metrics.json, predictions.jsonl, report_page.html
        outputs/<run>/answers/: what was answered already; outputs/<run>/sheet.csv: answers for a person to judge
Run     make evaluate
        python scripts/05_evaluate.py --config configs/demo.yaml
        python scripts/05_evaluate.py --config configs/demo.yaml --report     (only the report, from what is there)

Both models run under the same engine settings, template and sampling: greedy, unless asked otherwise.
"""

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
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.client.batch_file import AnswerRecord
from lockstep.data import user_files
from lockstep.endpoint import address
from lockstep.errors import Terminated, UserError
from lockstep.evaluation import contestants
from lockstep.evaluation.contestants import Case, Contestant, Task
from lockstep.settings import cli
from lockstep.settings.schema import Sampling
from lockstep.settings.tree import Settings

GREEDY = Sampling(temperature=0, top_p=1, top_k=-1, repetition_penalty=1)  # nothing that bends an answer
FORCED = "forced.json"  # beside the answers: which evaluation --force replaces
SHOWN = (
    "exact_match",
    "field_accuracy",
    "accuracy",
    "rouge_l",
    "chrf",
    "bleu",
    "perplexity",
    "repetition_rate",
    "stop_rate",
)


def bar(what: str, rows: int, there: int, coming: Iterator[AnswerRecord]) -> Iterator[AnswerRecord]:
    """A progress bar around rows that come."""
    from tqdm import tqdm

    return iter(tqdm(coming, desc=what, total=rows, initial=there, unit=" rows", disable=None))


# ---- who answers what ----


def contestants_of(settings: Settings) -> list[Contestant]:
    """Base, tuned, and the other runs, each with what tells it from other models and other engine settings."""
    evaluate, run_dir, known = settings.evaluate, settings.run_dir, address.model_name(settings)
    serve = cli.words_for(settings, "serve", without=("mode", "host", "port", "adapters", "served_model_name"))
    engine = json.dumps(engine_of(settings))
    template = manifest.sha256_of(run_dir / filenames.ADAPTER / filenames.CHAT_TEMPLATE)
    base = manifest.read(settings.model.folder).digest if (settings.model.folder / filenames.MANIFEST).exists() else ""

    def one(name: str, run: str, identity: str, mode: str, url: str | None = None) -> Contestant:
        # what else a server needs of the settings it has from the run's own manifests
        made = Contestant(name, run, f"{identity} {engine}", mode, ("--run", run, *serve), url)
        # a server of the adapter offers its base, too
        return served_model(made, *([f"{known}-base"] if mode == "base" else []), known) if url else made

    def merged(run: str) -> str:
        return manifest.require(paths.run_dir(run) / filenames.MERGED, "merge").digest

    untouched = one("base", settings.run, f"{base} {template}", "base", evaluate.base_url)
    tuned = one("tuned", settings.run, merged(settings.run), "merged", evaluate.tuned_url)
    if tuned.url and (tuned.url, tuned.model) == (untouched.url, untouched.model):
        raise UserError(f"--evaluate.base_url and tuned_url lead to the same model, {tuned.model} at {tuned.url}")
    return [untouched, tuned, *(one(run, run, merged(run), "merged") for run in evaluate.runs)]


def engine_of(settings: Settings) -> dict[str, Any]:
    """The settings of the server on which answers depend."""
    keep = {"dtype", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "enforce_eager", "vllm_args"}
    return settings.serve.model_dump(mode="json", include=keep)


def served_model(one: Contestant, *wanted: str) -> Contestant:
    """Someone else's server: the first model of these names or the only one, and the address beside the weights for identity."""
    from dataclasses import replace

    from lockstep.client.openai_client import Endpoint

    url = address.checked_url(one.url or "")
    model = Endpoint(url, notice=print).model(*wanted)
    print(f"{one.name}: {model} at {url}")
    return replace(one, url=url, model=model, identity=f"{url} {model} {one.identity}")


def tasks(settings: Settings, asked: list[Case], panel: Any) -> list[Task]:
    """What every contestant is asked."""
    evaluate, longest = settings.evaluate, settings.serve.max_model_len
    prose = contestants.encoded(settings.run_dir / filenames.ADAPTER, [one.text for one in panel.prose])
    general = [contestants.question(one.question) for one in panel.questions]
    return [
        contestants.answers(asked, sampling_of(settings), evaluate, longest),
        contestants.likelihoods([case.input_ids for case in asked], [case.places for case in asked], "likelihood"),
        contestants.answers(general, GREEDY, evaluate, longest, "general"),
        contestants.likelihoods(prose, [range(1, len(ids)) for ids in prose], "prose"),
    ]


def tasks_of_tuned(settings: Settings, asked: list[Case], recorded: list[Any]) -> list[Task]:
    """What only the tuned model is asked: the rows on record, and other ways of sampling."""
    evaluate = settings.evaluate
    ids, places = ([row[key] for row in recorded] for key in ("input_ids", "places"))
    some, longest = asked[: evaluate.sampling_rows], settings.serve.max_model_len
    return [
        contestants.likelihoods(ids, places, "reference"),
        *(
            contestants.answers(some, way, evaluate, longest, f"sampling-{n}")
            for n, way in enumerate(samplings(settings))
        ),
    ]


def sampling_of(settings: Settings) -> Sampling:
    return GREEDY if settings.evaluate.greedy else settings.sampling


def samplings(settings: Settings) -> list[Sampling]:
    """Greedy, the run's own sampling, and that with one thing changed at a time; none where no rows are asked so."""
    if not settings.evaluate.sampling_rows:
        return []
    own = settings.sampling.model_copy(update={"seed": settings.evaluate.seed})
    changes: list[dict[str, Any]] = [
        {"temperature": 0.2}, {"temperature": 0.9}, {"top_p": 0.5}, {"top_p": 0.95},
        {"repetition_penalty": 1.0}, {"repetition_penalty": 1.3},
    ]  # fmt: skip
    return [GREEDY, own, *(own.model_copy(update=change) for change in changes)]


# ---- the stage ----


def evaluate(settings: Settings, work: Path) -> dict[str, Any]:
    """Ask, measure, and write it all into `work`."""
    from lockstep.evaluation import forgetting, human_sheet, report_page, verdict

    run_dir, wanted = settings.run_dir, settings.evaluate
    asked = contestants.cases(run_dir / filenames.DATA, wanted.rows)
    panel = forgetting.load(paths.data_file(wanted.panel)) if wanted.panel else forgetting.load()
    recorded = atomic.read_json(run_dir / filenames.ADAPTER / filenames.REFERENCE)["rows"]
    recorded = [row for row in recorded if len(row["input_ids"]) < settings.serve.max_model_len]
    common, more = tasks(settings, asked, panel), tasks_of_tuned(settings, asked, recorded)
    found = {
        one.name: contestants.collect(
            one,
            common + (more if one.name == "tuned" else []),
            run_dir / filenames.ANSWERS,
            wanted.concurrency,
            print,
            bar,
        )
        for one in contestants_of(settings)
    }
    metrics = verdict.metrics(asked, found, panel, recorded, run_dir / filenames.DATA / "train", wanted.seed)
    metrics["sampling"] = sampling_of(settings).model_dump(exclude_none=True)
    metrics["samplings"] = [
        verdict.of_sampling(asked, way, found["tuned"][f"sampling-{n}"]) for n, way in enumerate(samplings(settings))
    ]
    answered = work / filenames.PREDICTIONS
    with answered.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in verdict.predictions(asked, found))
    metrics["people"] = human_sheet.read(run_dir / filenames.SHEET, answered)
    human_sheet.write(run_dir / filenames.SHEET, answered, wanted.sheet_rows, wanted.seed)
    atomic.write_json(work / filenames.METRICS, metrics)
    report_page.write(run_dir, work, work / filenames.REPORT)
    return metrics


def rebuild(settings: Settings) -> None:
    """The report anew from what exists, with what a person has put on the sheet since."""
    from lockstep.evaluation import human_sheet, report_page

    run_dir = settings.run_dir
    folder = run_dir / filenames.EVALUATION
    if not run_dir.is_dir():
        raise UserError(f"there is no run {settings.run}: {paths.label(run_dir)} is missing")
    Stage("evaluate", folder, {}, []).recover()
    if not (folder / filenames.MANIFEST).exists():
        report_page.write(run_dir, None, run_dir / filenames.REPORT)
        return print(f"{paths.label(run_dir)}/report.html is written, without an evaluation: `make evaluate` makes one")
    record = manifest.read(folder)
    stage = Stage("evaluate", folder, record.config, [paths.resolve_label(name) for name in record.inputs], force=True)
    manifest.check_hashes(folder, record)
    if stage.inputs != record.inputs:
        raise UserError(
            f"{paths.label(folder)} is of another model or data than what is there now: run `make evaluate ARGS=--force`"
        )
    stage.metrics = record.metrics
    with stage.writing() as work:
        for name in (filenames.PREDICTIONS, filenames.METRICS):
            shutil.copyfile(folder / name, work / name)
        metrics = atomic.read_json(work / filenames.METRICS)
        atomic.write_json(
            work / filenames.METRICS,
            metrics | {"people": human_sheet.read(run_dir / filenames.SHEET, work / filenames.PREDICTIONS)},
        )
        report_page.write(run_dir, work, work / filenames.REPORT)
    print(f"{paths.label(folder)}/report.html is written")


def tell(metrics: dict[str, Any]) -> None:
    """The table in the terminal."""
    print(
        f"\n{metrics['rows']} held-out rows; 95 % intervals; the verdict by a 99 % interval of the paired difference\n"
    )
    print(f"  {'':20} {'base':>26} {'tuned':>26}   verdict")
    for name in SHOWN:
        if name in metrics["base"]:
            sides = [cell(metrics[side][name]) for side in ("base", "tuned")]
            verdict = metrics["verdict"].get(name) or ""
            needed = metrics["difference"][name].get("rows_needed")
            more = f" (about {needed} rows would decide)" if verdict == "undecided" and needed else ""
            print(f"  {name:20} {sides[0]:>26} {sides[1]:>26}   {verdict}{more}")
    for name, counts in metrics["unanswered"].items():
        for kind, count in counts.items():
            if kind in ("likelihood", "prose", "reference"):
                said = f"({kind}) were refused by its server and are left out"
            else:
                counted = "count as wrong" if kind == "answers" else "are left out"
                said = f"have no answer ({kind}) and {counted}: --force asks all again"
            print(f"warning: {count} rows of {name} {said}", file=sys.stderr)


def cell(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    ends = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def ended(number: int, _: Any) -> None:
    """A signal that asks to end: the server ends with this program, and the answers so far stay."""
    raise Terminated("terminated; run the same command again to go on")


def forget_answers(answers: Path, folder: Path) -> None:
    """Remove the answers of an earlier evaluation; those of a forced one that did not come to its end stay."""
    note = answers / FORCED
    replaces = manifest.identity(folder)
    if not note.exists() or atomic.read_json(note) != replaces:
        shutil.rmtree(answers, ignore_errors=True)
        answers.mkdir()
        atomic.write_json(note, replaces)


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "evaluate", "serve")
    cli.stage_options(parser)
    parser.add_argument("--report", action="store_true", help="only write the report again, from what is there")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    run_dir = settings.run_dir
    folder = run_dir / filenames.EVALUATION
    if chosen.check:
        sys.exit(user_files.check_exit_code(settings, "evaluate", folder))
    if chosen.report:
        return rebuild(settings)
    user_files.check(settings, "evaluate")

    # --- inputs ---
    merged = manifest.require(run_dir / filenames.MERGED, "merge")
    settings = settings.inherit(merged.config, paths.label(run_dir / filenames.MERGED))
    manifest.require(run_dir / filenames.ADAPTER, "train")
    inputs = [run_dir / filenames.DATA, run_dir / filenames.ADAPTER, run_dir / filenames.MERGED]
    inputs += [paths.run_dir(run) / filenames.MERGED for run in settings.evaluate.runs]
    if settings.evaluate.panel:
        inputs.append(paths.data_file(settings.evaluate.panel))
    if taken := {"base", "tuned", "row", "messages", "wanted"} & set(settings.evaluate.runs):
        raise UserError(
            f"--evaluate.runs: the name {min(taken)} has a meaning of its own in the metrics: give the run another one"
        )
    if settings.evaluate.rows is not None and settings.evaluate.sampling_rows > settings.evaluate.rows:
        raise UserError("--evaluate.sampling_rows is more than --evaluate.rows")
    sections = settings.sections("model", "data", "method", "evaluate", "sampling") | {"engine": engine_of(settings)}
    stage = Stage("evaluate", folder, sections, inputs, chosen.force)
    if found := stage.finished():
        return print(f"{paths.label(folder)} is up to date ({manifest.short(found.digest)})")

    # --- work, save, manifest last ---
    signal.signal(signal.SIGTERM, ended)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means that a hang-up is no reason
        signal.signal(signal.SIGHUP, ended)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with stage.writing() as work:
        if chosen.force:
            forget_answers(run_dir / filenames.ANSWERS, folder)
        metrics = evaluate(settings, work)
        stage.metrics = {
            side: {name: metrics[side][name]["value"] for name in metrics[side]} for side in ("base", "tuned")
        }
    (run_dir / filenames.ANSWERS / FORCED).unlink(missing_ok=True)
    tell(metrics)
    print(f"\n{paths.label(folder)} is complete; look at {paths.label(folder)}/report.html")
    print(f"{paths.label(run_dir)}/sheet.csv holds answers for you to judge; `make report` reads it back")


if __name__ == "__main__":
    cli.run(main)
