"""Stage 01: turn files of instructions into exactly the tensors that training sees.

Reads   models/<name>/ (tokenizer, template), and JSONL, JSON arrays, CSV or Parquet (also .gz), or a data set's id,
        with rows in Alpaca, prompt/completion, OpenAI messages or ShareGPT layout
Writes  outputs/<run>/data/ : train/ validation/ test/ (Arrow: input_ids, labels, messages, tools, row),
        ledger.json (every line in exactly one bucket), rejects.jsonl, changes.jsonl, quality.json,
        contract.json (test conversations and their prompt ids), preview.html, chat_template.jinja, manifest.json
Run     make data
        python scripts/01_data_collator.py --config configs/demo.yaml --preview 3

A prompt is rendered with the run's chat template and carries no loss (label -100). Each answer
is encoded apart and followed by the end-of-turn token; both are supervised. Batches are padded
later, by lockstep/data/collator.py.
"""

import lockstep  # noqa: F401 - first of all: it looks after Ctrl-C and missing packages while this imports

# isort: split
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import (
    arrow_writer,
    cleaning,
    conversation_row,
    layouts,
    near_duplicates,
    preview,
    readers,
    sources,
    user_files,
)
from lockstep.data.cleaning import Change
from lockstep.data.conversation_row import Row
from lockstep.data.encoding import Sample, Sampler
from lockstep.data.ledger import Account, Ledger
from lockstep.data.quality_report import Quality
from lockstep.data.readers import Reject
from lockstep.data.splits import SPLITS
from lockstep.errors import UserError
from lockstep.prompts import contract, template
from lockstep.prompts.template import Template
from lockstep.settings import cli
from lockstep.settings.schema import Data
from lockstep.settings.tree import Settings
from lockstep.text.unicode import drop_controls

HELD_OUT_FIRST = ("test", "validation", "train")  # a row that stands in two splits stays in the first of these
CHUNK = 500  # rows rendered and encoded at a time,
CHARACTERS = 4_000_000  # or so many characters

Entry = tuple[str, Row | Reject, list[Change]]  # split, row, what cleaning changed


def split_of(row: Row, data: Data, own: str) -> str:
    """The split of a row: that of its own file, or a share of train_file by the text's hash.

    The hash keeps every row where it is when others are added or the file is sorted anew.
    """
    if own != "train":
        return own
    # an input stands under another mark with another template, and must not change its split
    text = conversation_row.canonical(row).replace(json.dumps(template.INPUT_MARK, ensure_ascii=False)[1:-1], "\\n")
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    validation = 0.0 if data.validation_file else data.validation_share
    test = 0.0 if data.test_file else data.test_share
    if place < validation:
        return "validation"
    return "test" if place < validation + test else "train"


def read(files: dict[str, list[Path]], data: Data) -> Iterator[Entry]:
    """Every record of every file, held-out files first."""
    from tqdm import tqdm

    for own in HELD_OUT_FIRST:
        for path in files[own]:
            for record in tqdm(readers.read(path), desc=paths.label(path), unit=" rows", delay=2, disable=None):
                row = record if isinstance(record, Reject) else layouts.parse(record, data)
                changes: list[Change] = []
                split = split_of(row, data, own) if isinstance(row, Row) else own
                if isinstance(row, Row):
                    row, changes = cleaning.clean(row, data.clean)
                    if fault := cleaning.fault(row, data):
                        row = row.reject(*fault)
                yield split, row, changes


def bar(searched: Any) -> Any:
    """A search for phrases or near duplicates with a progress bar, should it take long."""
    from tqdm import tqdm

    return tqdm(searched, desc="report", unit=" steps", delay=2, disable=None)


def sieve_of(files: dict[str, list[Path]], data: Data) -> near_duplicates.Sieve:
    """What lets the first of equal rows pass; looks for near duplicates by reading all files once more."""
    if "near_duplicate" not in data.drop:
        return near_duplicates.Sieve(data.drop, {})
    least = data.near_duplicate_similarity or 1
    signatures, names, around = near_duplicates.Signatures(), [], []
    for _, row, _ in read(files, data):
        if isinstance(row, Row):
            signatures.add(row.said)
            names.append(row.name)
            around.append(hash((row.system, repr(row.tools))))  # what is asked under other terms is no duplicate
    leaders = {
        place: group[0]
        for group in signatures.clusters(least, bar)
        for place in group[1:]
        # groups are chains: their ends may have little in common
        if signatures.alike(group[0], place) >= least and around[group[0]] == around[place]
    }
    places = {names[place]: place for place in leaders}
    return near_duplicates.Sieve(
        data.drop,
        {names[place]: names[leader] for place, leader in leaders.items()},
        lambda one, other: signatures.alike(places[one], places[other]) >= least,
    )


def chunks(passing: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Rows by the CHUNK, fewer where they are long."""
    chunk: list[Entry] = []
    size = 0
    for entry in passing:
        chunk.append(entry)
        row = entry[1]
        # each answer is rendered after all that went before it
        size += len(row.record.raw or "") + len(row.said) * len(row.answers) if isinstance(row, Row) else len(row.text)
        if len(chunk) == CHUNK or size > CHARACTERS:
            yield chunk
            chunk, size = [], 0
    yield chunk


class Books:
    """All that is written while rows pass: splits, rejects, changes, and the figures about them."""

    def __init__(self, work: Path, data: Data) -> None:
        self.ledger, self.picks, self.quality = Ledger(SPLITS), preview.Picks(), Quality(SPLITS, data)
        self.splits = {split: arrow_writer.Split(work / split) for split in SPLITS}
        self.rejects = (work / filenames.REJECTS).open("w", encoding="utf-8")
        self.changes = (work / filenames.CHANGES).open("w", encoding="utf-8")

    def drop(self, reject: Reject) -> None:
        self.ledger.drop(reject.file, reject.reason)
        self.picks.reject(reject)
        self._line(self.rejects, asdict(reject))

    def keep(self, split: str, samples: list[Sample], changes: list[Change]) -> None:
        row = samples[0].row
        changes = [*changes, *(Change("tokenizer", *change) for change in samples[0].respelled)]
        self.ledger.keep(split, samples, [change.step for change in changes])
        self.quality.add(row, split, self.splits[split].rows)
        self.splits[split].write(samples)
        for change in changes:
            self._line(self.changes, {"file": row.record.file, "line": row.record.line} | asdict(change))
        for sample in samples:
            self.picks.keep(sample, split, len(samples), changes)

    def _line(self, stream: Any, value: Any) -> None:
        stream.write(json.dumps(value, ensure_ascii=False) + "\n")

    def line(self, split: str, place: int) -> dict[str, Any]:
        """A sample that was written, after close."""
        return self.splits[split].line(place)

    def close(self) -> None:
        self.rejects.close()
        self.changes.close()
        for split in self.splits.values():
            split.close()


def collect(files: dict[str, list[Path]], data: Data, chat: Template, books: Books) -> None:
    """Read every file once and put every record into the books."""
    # files without a record, too
    books.ledger.files |= {paths.label(path): Account() for found in files.values() for path in found}
    sieve, sampler, passing = sieve_of(files, data), Sampler(chat, data), read(files, data)
    for chunk in chunks(passing):
        sampled = iter(sampler.samples([row for _, row, _ in chunk if isinstance(row, Row)]))
        for split, row, changes in chunk:
            found = next(sampled) if isinstance(row, Row) else row
            # a row that is dropped has no duplicates
            if isinstance(row, Row) and isinstance(found, list) and (fault := sieve.fault(row, split)):
                found = row.reject(*fault)
            if isinstance(found, Reject):
                books.drop(found)
            else:
                books.keep(split, found, changes)
    books.close()


def problem(books: Books, data: Data) -> str | None:
    """Why these rows must not be trained on, or None."""
    if found := books.ledger.problem(data.max_reject_share):
        return found
    needed = {
        "train": True,
        "validation": bool(data.validation_file or data.validation_share),
        "test": bool(data.test_file or data.test_share),
    }
    for split in SPLITS:
        if needed[split] and not books.ledger.splits[split]["rows"]:
            without = f"{split}_file null" if getattr(data, f"{split}_file") else f"{split}_share 0"
            hint = "" if split == "train" else f": give --data.{split}_file, or --data.{without} to go without"
            return f"no row is left for {split} ({books.ledger.summary()}){hint}"
    return None


def show(folder: Path, settings: Settings, count: int) -> None:
    """The first training rows in the terminal, what is supervised in green."""
    if not count:
        return
    from datasets import load_from_disk

    text = (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    chat = template.load(settings.model.folder, text, settings.data.allow_tokens)
    train = load_from_disk(folder / "train")
    for sample in train.select(range(min(count, len(train)))):
        print(f"\n{sample['row']}")
        for kind, token in preview.token_spans(sample["input_ids"], sample["labels"], chat):
            green = kind in ("answer", "end") and sys.stdout.isatty()
            token = drop_controls(token)  # a text must not steer the terminal
            print(f"\033[32m{token}\033[0m" if green else token, end="")
        print()


def main() -> None:
    parser = cli.parser(__doc__ or "", "model", "data")
    cli.stage_options(parser)
    parser.add_argument("--preview", type=int, metavar="N", default=0, help="show N rows in the terminal")
    options = parser.parse_args()
    settings = cli.settings_from(options)
    folder = settings.run_dir / filenames.DATA
    if options.check:
        sys.exit(user_files.check_exit_code(settings, "data", folder))
    user_files.check(settings, "data")

    # --- inputs ---
    base = manifest.require(settings.model.folder, "download")
    settings = settings.inherit(base.config, paths.label(settings.model.folder))
    text = template.source(settings.data, settings.model.folder)  # fails early where there is none
    if "data.date" in settings.explicit and "strftime_now" not in text:
        raise UserError("--data.date: the chat template does not print the date")
    settings, files, inputs = sources.resolve(settings, say=print)
    data = settings.data
    if data.template.endswith(".jinja"):
        inputs.append(paths.data_file(data.template))
    stage = Stage(
        "data", folder, settings.sections("model", "data"), [settings.model.folder, *inputs], options.force
    )  # fmt: skip
    if found := stage.finished():
        show(folder, settings, options.preview)
        return print(f"{paths.label(folder)} is up to date ({manifest.short(found.digest)})")

    # --- records → rows → samples ---
    with stage.writing() as work:
        chat = template.load(settings.model.folder, text, data.allow_tokens)
        if data.system_prompt and (token := chat.control_token(data.system_prompt)):
            raise UserError(f"--data.system_prompt holds {token}, which would act as a control token")
        atomic.write_json(work / filenames.CONTRACT, contract.build(chat, data))
        books = Books(work, data)
        collect(files, data, chat, books)
        ledger, quality = books.ledger.as_json(), books.quality.report(books.ledger, books.line, bar)
        atomic.write_json(work / filenames.LEDGER, ledger)
        if data.thinking is None and template.thinking_flags(text) and not books.quality.thoughts:
            quality["advice"].append(
                "the chat template can open a block of thought, and no row holds one: with --data.thinking false "
                "prompts end as the base model's own do where it answers without"
            )
        if "bos_token" not in text and chat.starts_with_bos:
            quality["advice"].append(
                "prompts of this template lack the token that begins every text of this model: expect a worse start"
            )
        atomic.write_json(work / filenames.QUALITY, quality)
        (work / filenames.PREVIEW).write_text(preview.page(books.picks, ledger, quality, chat), encoding="utf-8")
        if reason := problem(books, data):
            failed = folder.with_name("data.failed")
            shutil.rmtree(failed, ignore_errors=True)
            for split in SPLITS:
                shutil.rmtree(work / split, ignore_errors=True)
            shutil.move(work, failed)
            raise UserError(f"{reason}; see {paths.label(failed)}/rejects.jsonl and preview.html beside it")

        # --- save ---
        (work / filenames.CHAT_TEMPLATE).write_text(text, encoding="utf-8")
        stage.metrics = ledger["splits"]
    shutil.rmtree(folder.with_name("data.failed"), ignore_errors=True)
    show(folder, settings, options.preview)
    for split, counts in ledger["splits"].items():
        print(f"{split}: {counts['rows']} rows, {counts['tokens']} tokens, {counts['supervised_tokens']} supervised")
    for line in quality["advice"]:
        print(f"note: {line}")
    print(f"{books.ledger.summary()}; {paths.label(folder)} is complete, see preview.html in it")


if __name__ == "__main__":
    cli.run(main)
