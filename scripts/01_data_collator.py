"""Stage 01: turn a file of instructions into exactly the tensors that training sees.

Reads   models/<name>/ (tokenizer, template) and JSONL or JSON arrays in Alpaca fields
Writes  outputs/<run>/data/ : train/ validation/ test/ (Arrow: input_ids, labels, messages, row),
        ledger.json (every line in exactly one bucket), rejects.jsonl, preview.html,
        chat_template.jinja, manifest.json
Run     make data
        python scripts/01_data_collator.py --config configs/demo.yaml --preview 3

The prompt is rendered with the run's chat template and carries no loss (label -100). The answer
is encoded apart and followed by the end-of-turn token; both are supervised. Batches are padded
later, by lockstep/collator.py.
"""

import hashlib
import json
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lockstep import cli, manifest, paths, preview, rows, template
from lockstep.collator import IGNORE
from lockstep.config import Data
from lockstep.errors import UserError
from lockstep.rows import Reject, Row
from lockstep.stage import Stage
from lockstep.template import Template

SPLITS = ("train", "validation", "test")


@dataclass
class Account:
    """What became of every line of one file."""

    lines: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: Counter[str] = field(default_factory=lambda: Counter(rows=0, tokens=0))
    changed: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        if self.lines != self.kept + sum(self.dropped.values()):
            raise AssertionError(f"the ledger does not add up: {self}")
        return {name: dict(v) if isinstance(v, Counter) else v for name, v in vars(self).items()}


class Sampler:
    """Rows → samples of token ids, by the truncation policy of the settings."""

    def __init__(self, chat: Template, data: Data) -> None:
        self.chat, self.data = chat, data

    def sample(self, row: Row) -> tuple[dict[str, Any] | str, int]:
        """A sample or the reason why there is none, and how many prompt tokens were cut."""
        question = template.fold(row.instruction, row.input, self.data.template)
        if self.chat.control_token(question) or self.chat.control_token(row.output):
            return "control_token", 0
        messages = [{"role": "user", "content": question}]
        prompt, answer = self.chat.prompt_ids(messages), self.chat.answer_ids(row.output)
        excess = max(0, len(prompt) + len(answer) - self.data.max_length)
        if excess and self.data.truncation == "error":
            raise UserError(
                f"{row.file}:{row.line} has {len(prompt) + len(answer)} tokens, more than "
                f"--data.max_length {self.data.max_length}, and --data.truncation is error"
            )
        if excess and (self.data.truncation == "drop" or excess >= len(prompt)):
            return "too_long", 0
        prompt = prompt[excess:]
        return {
            "input_ids": prompt + answer,
            "labels": [IGNORE] * len(prompt) + answer,
            "messages": [*messages, {"role": "assistant", "content": row.output}],
            "row": f"{row.file}:{row.line}",
        }, excess


def split_of(row: Row, data: Data, own_file: str) -> str:
    """The split of a row: that of its own file, or a share of train_file by the text's hash.

    The hash keeps every row where it is when others are added or the file is sorted anew.
    """
    if own_file != "train":
        return own_file
    text = manifest.canonical([row.instruction, row.input, row.output])
    place = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    validation = 0.0 if data.validation_file else data.validation_share
    test = 0.0 if data.test_file else data.test_share
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"


def percentile(values: list[int], share: float) -> int:
    """The smallest value with at least this share of all values at or below it; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def ledger_of(accounts: dict[str, Account], samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    lengths = [len(sample["input_ids"]) for split in samples.values() for sample in split]
    return {
        "files": {name: account.as_json() for name, account in accounts.items()},
        "splits": {
            split: {
                "rows": len(chosen),
                "tokens": sum(len(sample["input_ids"]) for sample in chosen),
                "supervised_tokens": sum(len(s["labels"]) - s["labels"].count(IGNORE) for s in chosen),
            }
            for split, chosen in samples.items()
        },
        "lengths": {"p50": percentile(lengths, 0.5), "p95": percentile(lengths, 0.95), "max": max(lengths, default=0)},
    }


def write_rejects(file: Path, rejects: Iterable[Reject]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for reject in rejects:
            stream.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


def collect(sources: dict[str, Path], data: Data, chat: Template) -> tuple[Any, dict[str, Account], list[Reject]]:
    """Read every file once. Returns samples by split, accounts by file, and the rejects."""
    from tqdm import tqdm

    samples: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    accounts: dict[str, Account] = defaultdict(Account)
    rejects: list[Reject] = []
    sampler = Sampler(chat, data)
    for own, path in sources.items():
        account = accounts[paths.label(path)]
        for row in tqdm(rows.read(path), desc=paths.label(path), unit=" rows", delay=2):
            account.lines += 1
            if isinstance(row, Reject):
                account.dropped[row.reason] += 1
                rejects.append(row)
                continue
            sample, cut = sampler.sample(row)
            if isinstance(sample, str):
                account.dropped[sample] += 1
                text = json.dumps(
                    {"instruction": row.instruction, "input": row.input, "output": row.output}, ensure_ascii=False
                )
                rejects.append(Reject(row.file, row.line, sample, text))
                continue
            account.kept += 1
            account.truncated.update(rows=int(cut > 0), tokens=cut)
            samples[split_of(row, data, own)].append(sample)
    return samples, accounts, rejects


def check_account(samples: Any, accounts: dict[str, Account], data: Data) -> str | None:
    """Why these samples must not be trained on, or None."""
    lines = sum(account.lines - account.dropped["blank"] for account in accounts.values())
    reasons = sum((a.dropped for a in accounts.values()), Counter[str]())
    reasons.pop("blank", None)
    named = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(4))
    dropped = sum(reasons.values())
    if lines and dropped / lines > data.max_reject_share:
        hint = ": save the file as UTF-8" if reasons["bad_utf8"] else ""
        return f"{dropped} of {lines} rows were dropped ({named}), more than --data.max_reject_share {data.max_reject_share}{hint}"
    needed = {
        "train": True,
        "validation": bool(data.validation_file or data.validation_share),
        "test": bool(data.test_file or data.test_share),
    }
    for split in SPLITS:
        if needed[split] and not samples[split]:
            hint = "" if split == "train" else f": give --data.{split}_file, or --data.{split}_share 0 to go without"
            return f"no row is left for {split} (of {lines} rows read; dropped: {named or 'none'}){hint}"
    return None


def write_dataset(folder: Path, samples: list[dict[str, Any]]) -> None:
    from datasets import Dataset, Features, List, Value, disable_progress_bars

    disable_progress_bars()
    message = {"role": Value("string"), "content": Value("string")}
    ids = List(Value("int32"))
    features = Features({"input_ids": ids, "labels": ids, "messages": List(message), "row": Value("string")})
    columns = {name: [sample[name] for sample in samples] for name in features}
    # an empty split needs a shard, too, or it could not be loaded
    Dataset.from_dict(columns, features=features).save_to_disk(folder, num_shards=None if samples else 1)


def show(folder: Path, model: Path, count: int) -> None:
    """The first training rows in the terminal, what is supervised in green."""
    if not count:
        return
    from datasets import load_from_disk

    chat = template.load(model, (folder / template.FILE).read_text(encoding="utf-8"))
    train = load_from_disk(folder / "train")
    for sample in train.select(range(min(count, len(train)))):
        print(f"\n{sample['row']}")
        for kind, text in preview.token_spans(sample, chat):
            green = kind in ("answer", "end") and sys.stdout.isatty()
            print(f"\033[32m{text}\033[0m" if green else text, end="")
        print()


def main() -> None:
    parser = cli.parser(__doc__ or "", "model", "data")
    cli.stage_options(parser)
    parser.add_argument("--preview", type=int, metavar="N", default=0, help="show N rows in the terminal")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    folder = settings.run_dir / "data"
    if options.check:
        sys.exit(0 if manifest.looks_complete(folder) else 3)

    # --- inputs ---
    base = manifest.require(settings.model.folder, "download")
    settings = settings.inherit(base.config, paths.label(settings.model.folder))
    data = settings.data
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    sources = {split: paths.data_file(file) for split, file in files.items() if file}
    if len(set(sources.values())) != len(sources):
        raise UserError("two splits read the same file: held-out rows must not be trained on")
    for path in sources.values():
        if not path.is_file():
            raise UserError(f"no file {paths.label(path)}: data/README.md shows what goes there")
    templates = [paths.data_file(data.template)] if data.template.endswith(".jinja") else []
    template.source(data.template, settings.model.folder, data.system_prompt)  # fails early where there is none
    stage = Stage(
        "data", folder, settings.sections("model", "data"), [settings.model.folder, *sources.values(), *templates],
        options.force,
    )  # fmt: skip
    if found := stage.finished():
        show(folder, settings.model.folder, options.preview)
        return print(f"{paths.label(folder)} is up to date ({manifest.short(found.digest)})")

    # --- rows → samples ---
    with stage.writing() as work:
        text = template.source(data.template, settings.model.folder, data.system_prompt)
        chat = template.load(settings.model.folder, text)
        if data.system_prompt and (token := chat.control_token(data.system_prompt)):
            raise UserError(f"--data.system_prompt holds {token}, which would act as a control token")
        samples, accounts, rejects = collect(sources, data, chat)
        ledger = ledger_of(accounts, samples)
        manifest.write_json(work / "ledger.json", ledger)
        write_rejects(work / "rejects.jsonl", rejects)
        if problem := check_account(samples, accounts, data):
            failed = folder.with_name("data.failed")
            shutil.rmtree(failed, ignore_errors=True)
            shutil.copytree(work, failed)
            hint = f"; see {paths.label(failed)}/rejects.jsonl" if rejects else ""
            raise UserError(problem + hint)

        # --- save ---
        for split in SPLITS:
            write_dataset(work / split, samples[split])
        (work / template.FILE).write_text(text, encoding="utf-8")
        (work / "preview.html").write_text(preview.page(samples, rejects, ledger, chat), encoding="utf-8")
        stage.metrics = ledger["splits"]
    shutil.rmtree(folder.with_name("data.failed"), ignore_errors=True)
    show(folder, settings.model.folder, options.preview)
    for split, counts in ledger["splits"].items():
        print(f"{split}: {counts['rows']} rows, {counts['tokens']} tokens, {counts['supervised_tokens']} supervised")
    print(f"{len(rejects)} lines rejected; {paths.label(folder)} is complete, see preview.html in it")


if __name__ == "__main__":
    cli.run(main)
