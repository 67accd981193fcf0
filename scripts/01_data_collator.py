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
import argparse
import shutil
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from lockstep import paths
from lockstep.artifacts import atomic, filenames, lineage, manifest
from lockstep.artifacts.stage import Stage
from lockstep.data import (
    cleaning,
    keys,
    layouts,
    near_duplicates,
    notes,
    preview,
    readers,
    sources,
    splits,
    user_files,
)
from lockstep.data.bookkeeping import Books
from lockstep.data.cleaning import Change
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.encoding import Sampler
from lockstep.data.ledger import Account, Ledger
from lockstep.data.records import Record, Reject
from lockstep.errors import UserError
from lockstep.processes import busy
from lockstep.prompts import contract, template, template_source
from lockstep.prompts.template import Template
from lockstep.settings import cli, commands
from lockstep.settings.schema import Data
from lockstep.settings.tree import Settings
from lockstep.text.unicode import drop_controls

HELD_OUT_FIRST = ("test", "validation", "train")  # a row that stands in two splits stays in the first of these
CHUNK = 500  # rows rendered and encoded at a time,
CHARACTERS = 4_000_000  # or about so many characters

Files = dict[str, list[Path]]  # split → files


class Entry(NamedTuple):
    """A record on its way."""

    split: str
    row: ConversationRow | Reject
    changes: list[Change]  # by cleaning


def main() -> None:
    options = parse_arguments()
    settings = cli.settings_from(options)
    folder = settings.run_dir / filenames.DATA
    if options.check:
        sys.exit(user_files.check_exit_code(settings, "data", folder))

    # --- inputs ---
    commands.then("train")
    user_files.check_paths(settings, "data")
    settings, _ = lineage.require(settings, settings.model.folder, "download")
    chat_template = load_chat_template(settings)  # before a data set is downloaded: there may be none
    settings, files, inputs = sources.resolve(settings, say=cli.say)
    inputs = [settings.model.folder, *inputs]
    if settings.data.template.endswith(".jinja"):
        inputs.append(paths.data_file(settings.data.template))
    stage = Stage(
        "data", folder, settings.sections("model", "data"), inputs, options.force, config_file=settings.config_file
    )
    if finished := stage.finished():
        show_samples(folder, settings, options.preview)
        return cli.say(f"{paths.label(folder)} is up to date ({manifest.short(finished.digest)})")

    # --- records → rows → samples, manifest last ---
    with stage.writing() as work:
        books, advice = write_output(settings, chat_template, files, work)
        if reason := books.ledger.hopeless(settings.data) or books.ledger.problem(settings.data):
            refuse(reason, work, folder)
        (work / filenames.CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
        stage.metrics = books.ledger.as_json()["splits"]
    shutil.rmtree(failed_folder(folder), ignore_errors=True)
    show_samples(folder, settings, options.preview)
    for split, counts in stage.metrics.items():
        samples = f" ({counts['samples']} samples)" if counts["samples"] != counts["rows"] else ""
        figures = f"{counts['tokens']} tokens, {counts['supervised_tokens']} supervised"
        cli.say(f"{split}: {counts['rows']} rows{samples}, {figures}")
    for line in advice:
        cli.say(f"note: {line}")
    cli.say(f"{books.ledger.summary()}; {paths.label(folder)} is complete, see preview.html in it")


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__ or "", "model", "data")
    cli.stage_options(parser)
    parser.add_argument("--preview", type=int, metavar="N", default=0, help="show N rows in the terminal")
    return parser.parse_args()


def load_chat_template(settings: Settings) -> str:
    """The Jinja source that this run uses. Raises UserError."""
    text = template_source.read(settings.data, settings.model.folder)
    if "data.date" in settings.explicit and "strftime_now" not in text:
        raise UserError("--data.date: the chat template does not print the date")
    return text


def write_output(settings: Settings, chat_template: str, files: Files, work: Path) -> tuple[Books, list[str]]:
    """Write the output into `work`, but for the template; returns the closed books, and advice for the user."""
    data = settings.data
    with busy.waiting("loading the tokenizer"):
        chat = contract.training_template(settings.model.folder, chat_template, data.allow_tokens)
    if data.system_prompt and (token := chat.control_token(data.system_prompt)):
        raise UserError(f"--data.system_prompt holds {token}, which would act as a control token")
    with busy.waiting("rendering the golden conversations"):
        agreed = contract.build(chat, data)
    books = Books(work, data)
    collect(files, data, chat, books)
    ledger = books.ledger.as_json()
    atomic.write_json(work / filenames.LEDGER, ledger)
    agreed |= {"rows": len(books.quality.split), "rows_with_thoughts": books.quality.thoughts}
    atomic.write_json(work / filenames.CONTRACT, agreed)
    quality = books.quality.report(books.ledger, books.line, progress_bar)
    quality["advice"] += template_advice(chat, data, books.quality.thoughts)
    quality["advice"] += [*shape_notes(files), *user_files.unused_splits(data), *notes.lines(books.ledger, data)]
    atomic.write_json(work / filenames.QUALITY, quality)
    (work / filenames.PREVIEW).write_text(preview.page(books.picks, ledger, quality, chat), encoding="utf-8")
    return books, quality["advice"]


def collect(files: Files, data: Data, chat: Template, books: Books) -> None:
    """Read every file once and put every record into the books, which are closed then."""
    for split_files in files.values():
        for path in split_files:
            books.ledger.files[paths.label(path)] = Account()  # files without a record are in the ledger, too
    sieve = near_duplicates.build_sieve(usable_rows(files, data), data, progress_bar)  # reads all files if it has to
    sampler = Sampler(chat, data)
    for chunk in in_chunks(read_entries(files, data)):
        sampled = iter(sampler.samples([entry.row for entry in chunk if isinstance(entry.row, ConversationRow)]))
        for split, row, changes in chunk:
            if isinstance(row, Reject):
                books.drop(row)
                continue
            samples = next(sampled)
            if isinstance(samples, Reject):
                books.drop(samples)
            # the sieve is asked last: a row that is dropped for another reason must not count as the first of its kind
            elif fault := sieve.fault(row, split):
                books.drop(row.reject(*fault))
            else:
                books.keep(split, samples, changes)
        if books.ledger.hopeless(data):
            break
    books.close()


def usable_rows(files: Files, data: Data) -> Iterator[ConversationRow]:
    """The rows of all files; it ends at a file that will be refused for its first rows."""
    seen = Ledger(())
    for entry in read_entries(files, data):
        if isinstance(entry.row, ConversationRow):
            seen.files[entry.row.record.file].kept += 1
            yield entry.row
        else:
            seen.drop(entry.row.file, entry.row.reason)
            if seen.hopeless(data):
                return


def read_entries(files: Files, data: Data) -> Iterator[Entry]:
    """Every record of every file, held-out files first, as a cleaned row in its split or as a reject."""
    for own in HELD_OUT_FIRST:
        for path in files[own]:
            records = readers.records(path)
            first = list(first_records(records))
            names = keys.other_names([record for record in first if isinstance(record, Record)], data)
            everything = chain(first, records)
            for record in busy.steps(everything, paths.label(path), unit="rows"):
                row = record if isinstance(record, Reject) else layouts.parse(record, data, names)
                if isinstance(row, Reject):
                    yield Entry(own, row, [])
                    continue
                split = splits.split_of(row, data, own)  # by the text as it was before cleaning
                row, changes = cleaning.clean(row, data.clean)
                fault = cleaning.fault(row, data)
                yield Entry(split, row.reject(*fault) if fault else row, changes)


def first_records(records: Iterable[Record | Reject]) -> Iterator[Record | Reject]:
    """The records that tell how a file names its fields, fewer where they are long."""
    size = told = 0
    for record in islice(records, CHUNK):  # unreadable ones tell nothing
        yield record
        size += len(record.text)
        told += isinstance(record, Record)
        if told == keys.FIRST or size > CHARACTERS:
            return


def shape_notes(files: Files) -> list[str]:
    """How files were read whose names do not say it."""
    every = [path for split_files in files.values() for path in split_files]
    return [f"{paths.label(path)}: {note}" for path in every if (note := readers.note(path))]


def in_chunks(entries: Iterator[Entry]) -> Iterator[list[Entry]]:
    """Entries by the CHUNK, fewer where rows are long."""
    chunk: list[Entry] = []
    size = 0
    for entry in entries:
        chunk.append(entry)
        row = entry.row
        if isinstance(row, Reject):
            size += len(row.text)
        else:  # each answer is rendered after all that was said before it
            size += len(row.record.raw or "") + len(row.dialogue) * len(row.answers)
        if len(chunk) == CHUNK or size > CHARACTERS:
            yield chunk
            chunk, size = [], 0
    yield chunk


def progress_bar(steps: Any) -> Any:
    """A search for phrases or near duplicates with a progress bar, should it take long."""
    return busy.steps(steps, "writing the report")


def template_advice(chat: Template, data: Data, thoughts: int) -> list[str]:
    """Where the chat template does not suit the model or the rows.

    Args:
        thoughts: rows that hold a block of thought.
    """
    advice = []
    if data.thinking is None and template_source.thinking_flags(chat.text) and not thoughts:
        advice.append(
            "the chat template can open a block of thought, and no row holds one: with --data.thinking false "
            "prompts end as the base model's own do where it answers without"
        )
    if "bos_token" not in chat.text and chat.starts_with_bos:
        advice.append(
            "prompts of this template lack the token that begins every text of this model: expect a worse start"
        )
    return advice


def failed_folder(folder: Path) -> Path:
    """Where the account of rows that must not be trained on is kept."""
    return folder.with_name(filenames.DATA_FAILED)


def refuse(reason: str, work: Path, folder: Path) -> None:
    """Keep the account of what is wrong, but no rows. Raises UserError."""
    failed = failed_folder(folder)
    shutil.rmtree(failed, ignore_errors=True)
    for split in splits.SPLITS:
        shutil.rmtree(work / split, ignore_errors=True)
    shutil.move(work, failed)
    raise UserError(f"{reason}; see {paths.label(failed)}/rejects.jsonl and preview.html beside it")


def show_samples(folder: Path, settings: Settings, count: int) -> None:
    """Print the first training samples, what is supervised in green."""
    if not count:
        return
    from datasets import load_from_disk

    text = (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    as_text = contract.text_tokens_of(folder)
    chat = template.load(settings.model.folder, text, settings.data.allow_tokens, as_text)
    train = load_from_disk(folder / filenames.TRAIN)
    for sample in train.select(range(min(count, len(train)))):
        print(f"\n{sample['row']}")
        for kind, token in preview.token_spans(sample["input_ids"], sample["labels"], chat):
            green = kind in ("answer", "end") and sys.stdout.isatty()
            token = drop_controls(token)  # a text must not steer the terminal
            print(f"\033[32m{token}\033[0m" if green else token, end="")
        print()


if __name__ == "__main__":
    cli.run(main)
