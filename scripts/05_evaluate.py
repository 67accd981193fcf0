"""Stage 05: did it get better? Base and tuned model answer the same held-out rows, and one report says so.

Reads   outputs/<run>/data/ (test rows, which nothing before has touched), adapter/, merged/
        the servers that it starts, one after the other, or those of --evaluate.base_url and tuned_url
Writes  outputs/<run>/eval/: metrics.json, predictions.jsonl, report.html
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

from lockstep import cli, contest, endpoint, manifest, paths
from lockstep.batchfile import Row
from lockstep.config import Settings
from lockstep.contest import Case, Contestant, Task
from lockstep.errors import Terminated, UserError
from lockstep.sections import Sampling
from lockstep.stage import Stage

GREEDY = Sampling(temperature=0, top_p=1, top_k=-1, repetition_penalty=1)  # nothing that bends an answer
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


def bar(what: str, rows: int, there: int, coming: Iterator[Row]) -> Iterator[Row]:
    """A progress bar around rows that come."""
    from tqdm import tqdm

    return iter(tqdm(coming, desc=what, total=rows, initial=there, unit=" rows", disable=None))


# ---- who answers what ----


def contestants(settings: Settings, words: list[str]) -> list[Contestant]:
    """Base, tuned, and the other runs, each with what tells it from other models and other engine settings."""
    evaluate, run_dir, name = settings.evaluate, settings.run_dir, settings.serve.served_model_name or settings.run
    template = manifest.sha256_of(run_dir / "adapter" / "chat_template.jinja")
    base = manifest.read(settings.model.folder).digest if (settings.model.folder / manifest.FILE).exists() else ""
    tuned, engine = manifest.read(run_dir / "merged").digest, json.dumps(engine_of(settings))
    made = [
        Contestant("base", name, f"{base} {template} {engine}", "base", tuple(words), evaluate.base_url),
        Contestant("tuned", name, f"{tuned} {engine}", "merged", tuple(words), evaluate.tuned_url),
    ]
    made = [served_model(one) if one.url else one for one in made]
    # of this run's settings another one's server gets those of the engine only
    serve = cli.words_for(settings, "serve", without=("served_model_name", "mode", "adapters"))
    for run in evaluate.runs:
        record = manifest.require(paths.run_dir(run) / "merged", "merge")
        made.append(Contestant(run, run, f"{record.digest} {engine}", "merged", ("--run", run, *serve)))
    return made


def engine_of(settings: Settings) -> dict[str, Any]:
    """The settings of the server on which answers depend."""
    keep = {"dtype", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "enforce_eager", "vllm_args"}
    return settings.serve.model_dump(mode="json", include=keep)


def served_model(one: Contestant) -> Contestant:
    """Someone else's server: the model of that name or the only one, and the address beside the weights for identity."""
    from dataclasses import replace

    from lockstep.asking import Endpoint

    url = endpoint.address(one.url or "")
    return replace(one, url=url, model=Endpoint(url, notice=print).model(one.model), identity=f"{url} {one.identity}")


def tasks(settings: Settings, asked: list[Case], panel: Any, name: str, recorded: list[Any]) -> list[Task]:
    """All that a contestant is asked."""
    evaluate, longest = settings.evaluate, settings.serve.max_model_len
    general = [contest.question(one.question) for one in panel.questions]
    prose = contest.encoded(settings.run_dir / "adapter", [one.text for one in panel.prose])
    everywhere = [range(1, len(ids)) for ids in prose]
    made = [
        contest.answers(asked, GREEDY if evaluate.greedy else settings.sampling, evaluate, longest),
        contest.likelihoods([case.input_ids for case in asked], [case.places for case in asked], "likelihood"),
        contest.answers(general, GREEDY, evaluate, longest, "general"),
        contest.likelihoods(prose, everywhere, "prose"),
    ]
    if name == "tuned":
        rows = [row for row in recorded if len(row["input_ids"]) < longest]
        made.append(
            contest.likelihoods([row["input_ids"] for row in rows], [row["places"] for row in rows], "reference")
        )
        ways = samplings(settings) if evaluate.sampling_rows else []
        some = asked[: evaluate.sampling_rows]
        made += [contest.answers(some, way, evaluate, longest, f"sampling-{n}") for n, way in enumerate(ways)]
    return made


def samplings(settings: Settings) -> list[Sampling]:
    """Greedy, the run's own sampling, and that with one thing changed at a time."""
    own = settings.sampling.model_copy(update={"seed": settings.evaluate.seed})
    changes: list[dict[str, Any]] = [
        {"temperature": 0.2}, {"temperature": 0.9}, {"top_p": 0.5}, {"top_p": 0.95},
        {"repetition_penalty": 1.0}, {"repetition_penalty": 1.3},
    ]  # fmt: skip
    return [GREEDY, own, *(own.model_copy(update=change) for change in changes)]


# ---- what the answers are worth ----


def measured(asked: list[Case], found: dict[str, list[Row]]) -> Any:
    """The measures of a contestant's answers; a row without an answer counts as an empty one."""
    from lockstep import scores

    rows = found["answers"]
    return scores.measure(
        [row.get("answer", "") for row in rows],
        [case.wanted for case in asked],
        finish_reasons=[row.get("finish_reason") for row in rows],
        output_tokens=[row.get("completion_tokens") for row in rows],
        seconds=[row.get("seconds") for row in rows],
        **nats_of(found["likelihood"], found["shared"]),
    )


def nats_of(rows: list[Row], shared: list[Row]) -> dict[str, list[float]]:
    """Nats and tokens of each row; a row that some contestant has no figure for counts for none."""
    known = [row["tokens"] > 0 and other["tokens"] > 0 for row, other in zip(rows, shared, strict=True)]
    return {
        key: [row[key] if there else 0.0 for row, there in zip(rows, known, strict=True)] for key in ("nats", "tokens")
    }


def fewest(sides: list[list[Row]]) -> list[Row]:
    """Row by row the one with the fewest tokens."""
    return [min(rows, key=lambda row: float(row["tokens"])) for rows in zip(*sides, strict=True)]


def remembered(panel: Any, found: dict[str, list[Row]]) -> Any:
    """The measures of what must not be forgotten."""
    from lockstep import forgetting, measures

    said = [row.get("answer", "") for row in found["general"]]
    return {
        "general_questions": forgetting.measure(panel, said),
        "prose_perplexity": measures.perplexity(**nats_of(found["prose"], found["shared prose"])),
    }


def metrics_of(
    settings: Settings, asked: list[Case], found: dict[str, dict[str, list[Row]]], recorded: list[Any], panel: Any
) -> dict[str, Any]:
    """eval/metrics.json."""
    from lockstep import bootstrap, overlap

    evaluate, seed = settings.evaluate, settings.evaluate.seed
    for one in found.values():  # only what all have a figure for can be compared
        one["shared"] = fewest([other["likelihood"] for other in found.values()])
        one["shared prose"] = fewest([other["prose"] for other in found.values()])
    figures = {name: measured(asked, one) for name, one in found.items()}
    kept = {name: remembered(panel, found[name]) for name in ("base", "tuned")}
    seen = overlap.find(contest.pairs(settings.run_dir / "data" / "train"), contest.pairs_of(asked))
    result = bootstrap.report(figures["base"], figures["tuned"], seed) | {
        "rows": len(asked),
        "sampling": (GREEDY if evaluate.greedy else settings.sampling).model_dump(exclude_none=True),
        "errors": {name: sum("error" in row for row in one["answers"]) for name, one in found.items()},
        "forgetting": bootstrap.report(kept["base"], kept["tuned"], seed),
        "overlap": seen.summary(),
        "serving": serving_gap(recorded, found["tuned"]["reference"]),
    }
    if others := [name for name in found if name not in ("base", "tuned")]:
        result["runs"] = {name: bootstrap.report(figures["tuned"], figures[name], seed)["tuned"] for name in others}
    if evaluate.sampling_rows:
        result["samplings"] = [
            {"sampling": way.model_dump(exclude_none=True, exclude={"seed", "max_tokens"})}
            | sampled(asked, found["tuned"][f"sampling-{number}"])
            for number, way in enumerate(samplings(settings))
        ]
    return result


def sampled(asked: list[Case], rows: list[Row]) -> dict[str, float | None]:
    """What a way of sampling does to repetition, length and correctness."""
    from lockstep import scores

    wanted = [case.wanted for case in asked[: len(rows)]]
    found = scores.measure([row.get("answer", "") for row in rows], wanted,
                           finish_reasons=[row.get("finish_reason") for row in rows])  # fmt: skip
    names = ("repetition_rate", "loop_rate", "distinct_2", "stop_rate", "output_characters", "exact_match", "rouge_l")
    return {name: found[name].value for name in names}


def serving_gap(recorded: list[Any], served: list[Row]) -> dict[str, Any]:
    """Whether serving changes the score: perplexity on held-out rows, of the trained model on record and as served."""
    import math

    pairs = [(row, one) for row, one in zip(recorded, served, strict=False) if one["tokens"]]
    tokens = sum(one["tokens"] for _, one in pairs)
    if not tokens:
        return {"tokens": 0, "perplexity": None}
    trained = -sum(sum(row["trained"]) for row, _ in pairs)
    return {
        "tokens": tokens,
        "perplexity": {
            "trained": math.exp(trained / tokens),
            "served": math.exp(sum(one["nats"] for _, one in pairs) / tokens),
        },
    }


def predictions(asked: list[Case], found: dict[str, dict[str, list[Row]]]) -> Iterator[dict[str, Any]]:
    """One line for each test row, with what every contestant made of it."""
    for number, case in enumerate(asked):
        row: dict[str, Any] = {"row": case.name, "messages": case.messages, "wanted": case.wanted}
        for name, one in found.items():
            said = {key: value for key, value in one["answers"][number].items() if key != "row"}
            row[name] = said | {"nats": one["likelihood"][number]["nats"]}
        yield row


# ---- the stage ----


def evaluate(settings: Settings, words: list[str], work: Path) -> dict[str, Any]:
    """Ask, measure, and write it all into `work`."""
    from lockstep import forgetting, report, sheet

    run_dir = settings.run_dir
    asked = contest.cases(run_dir / "data", settings.evaluate.rows)
    own = settings.evaluate.panel
    panel = forgetting.load(paths.data_file(own)) if own else forgetting.load()
    recorded = json.loads((run_dir / "adapter" / "reference.json").read_text(encoding="utf-8"))["rows"]
    recorded = [row for row in recorded if len(row["input_ids"]) < settings.serve.max_model_len]
    found = {
        one.name: contest.collect(
            one,
            tasks(settings, asked, panel, one.name, recorded),
            run_dir / "answers",
            settings.evaluate.concurrency,
            print,
            bar,
        )
        for one in contestants(settings, words)
    }
    metrics = metrics_of(settings, asked, found, recorded, panel)
    with (work / "predictions.jsonl").open("w", encoding="utf-8") as stream:
        for row in predictions(asked, found):
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    metrics["people"] = sheet.read(run_dir / "sheet.csv", work / "predictions.jsonl")
    sheet.write(run_dir / "sheet.csv", work / "predictions.jsonl", settings.evaluate.sheet_rows, settings.evaluate.seed)
    manifest.write_json(work / "metrics.json", metrics)
    report.write(run_dir, work, work / "report.html")
    return metrics


def rebuild(settings: Settings) -> None:
    """The report anew from what exists, with what a person has put on the sheet since."""
    from lockstep import report, sheet

    run_dir = settings.run_dir
    folder = run_dir / "eval"
    if not run_dir.is_dir():
        raise UserError(f"there is no run {settings.run}: {paths.label(run_dir)} is missing")
    if not (folder / manifest.FILE).exists():
        report.write(run_dir, None, run_dir / "report.html")
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
        for name in ("predictions.jsonl", "metrics.json"):
            shutil.copyfile(folder / name, work / name)
        metrics = json.loads((work / "metrics.json").read_text(encoding="utf-8"))
        manifest.write_json(
            work / "metrics.json", metrics | {"people": sheet.read(run_dir / "sheet.csv", work / "predictions.jsonl")}
        )
        report.write(run_dir, work, work / "report.html")
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


def cell(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    ends = figure["ci95"]
    return f"{figure['value']:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def ended(number: int, _: Any) -> None:
    """A signal that asks to end: the server ends with this program, and the answers so far stay."""
    raise Terminated("terminated; run the same command again to go on")


def options() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "evaluate", "serve")
    cli.stage_options(parser)
    parser.add_argument("--report", action="store_true", help="only write the report again, from what is there")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    settings = cli.settings_from(chosen)
    run_dir = settings.run_dir
    folder = run_dir / "eval"
    if chosen.check:
        sys.exit(0 if manifest.looks_complete(folder) else 3)
    if chosen.report:
        return rebuild(settings)

    # --- inputs ---
    merged = manifest.require(run_dir / "merged", "merge")
    settings = settings.inherit(merged.config, paths.label(run_dir / "merged"))
    manifest.require(run_dir / "adapter", "train")
    inputs = [run_dir / "data", run_dir / "adapter", run_dir / "merged"]
    inputs += [paths.run_dir(run) / "merged" for run in settings.evaluate.runs]
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
    if chosen.force:
        shutil.rmtree(run_dir / "answers", ignore_errors=True)

    # --- work, save, manifest last ---
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, ended)
    os.environ["HF_HUB_OFFLINE"] = "1"
    words = cli.words_of(chosen, "evaluate", "train", "lora", "merge", "adapter")
    with stage.writing() as work:
        metrics = evaluate(settings, words, work)
        stage.metrics = {
            side: {name: metrics[side][name]["value"] for name in metrics[side]} for side in ("base", "tuned")
        }
    tell(metrics)
    print(f"\n{paths.label(folder)} is complete; look at {paths.label(folder)}/report.html")
    print(f"{paths.label(run_dir)}/sheet.csv holds answers for you to judge; `make report` reads it back")


if __name__ == "__main__":
    cli.run(main)
