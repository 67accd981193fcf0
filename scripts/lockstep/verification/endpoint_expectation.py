"""What the trained model says, computed here by transformers where no run put it on record, and kept by content.

Base and adapter are loaded as PEFT loads them, in a process of their own, which needs memory for one model.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lockstep import paths
from lockstep.artifacts import atomic, filenames, manifest
from lockstep.errors import UserError
from lockstep.settings.schema import Data
from lockstep.verification import endpoint_model, endpoint_suppositions, files_expectation, subjects
from lockstep.verification.expectation import Expectation
from lockstep.verification.subjects import Subjects

if TYPE_CHECKING:
    from lockstep.prompts.template import Template

READ = 512  # records of the training file that rows are chosen from
ROWS = 24  # rows that the model is put on record for, evenly spread
LONGEST = 1024  # tokens of such a row
FORM = 2  # of what is kept; a new number forgets what older versions kept

Tell = Callable[[str], None]


def of_subjects(given: Subjects, tell: Tell = lambda step: None) -> Expectation:
    """What an endpoint must do if it serves what was given: on record with it, or computed now.

    Args:
        tell: is told what takes long.

    Raises:
        UserError: nothing given holds a tokenizer with a chat template, or the model cannot be loaded.
    """
    known = files_expectation.of_files(given)
    folder = given.reference or given.merged
    suspects = {"the base's own template": given.base} if given.base and subjects.has_tokenizer(given.base) else {}
    known = replace(known, tokenizer=folder, suspects=suspects)
    if given.base and given.adapter:
        base, adapter = given.base, given.adapter
        known = replace(
            known, suppositions=lambda questions: _fresh(endpoint_suppositions.tried, base, adapter, questions)
        )
    if known.reference is not None or not (given.merged or (given.base and given.adapter)):
        return known
    assert folder
    chat = files_expectation.chat_of(given, folder)
    rows = rows_of(given.data, chat) if given.data else []
    file = _kept(given, known.contract, rows)
    if not file.exists():
        trained = [path for path in (given.adapter, given.base) if path] if given.adapter else [given.merged]
        size = sum(part.stat().st_size for path in trained if path for part in path.glob("*.safetensors"))
        names = " + ".join(paths.label(path) for path in reversed(trained) if path)
        tell(f"computing what {names} says ({size / 1e9:.1f} GB of weights; kept for the next time)")
        recorded = _computed(given, known.contract, rows)
        paths.make_parent(file)
        atomic.write_json(file, recorded)
    return replace(known, reference=atomic.read_json(file))


def rows_of(file: Path, chat: "Template") -> list[dict[str, Any]]:
    """Rows of the training file as stage 01 would write them: `input_ids`, `labels`, `answer`, `messages`, `tools`.

    Raises:
        UserError: it cannot be read, or has no row that can be used.
    """
    from lockstep.data import conversation_row, keys, layouts, readers, user_files
    from lockstep.data.conversation_row import ConversationRow
    from lockstep.data.encoding import Sampler
    from lockstep.data.records import Record, Reject

    if file.is_dir():
        (file, *_) = user_files.files_of(file, paths.label(file))
    data = Data(max_length=LONGEST)
    records = [record for record in islice(readers.records(file), READ) if isinstance(record, Record)]
    names = keys.other_names(records[: keys.FIRST], data)
    parsed = [layouts.parse(record, data, names) for record in records]
    usable = [row for row in parsed if isinstance(row, ConversationRow)]
    samples = [
        sample for part in Sampler(chat, data).samples(usable) if not isinstance(part, Reject) for sample in part
    ]
    if not samples:
        raise UserError(f"--data {paths.label(file)}: none of its first {READ} rows can be read as a conversation")
    rows = []
    for sample in samples[:: -(-len(samples) // ROWS)]:
        messages, tools = conversation_row.packed(sample.row)
        rows.append(
            {
                "input_ids": sample.input_ids, "labels": sample.labels, "row": sample.row.name,
                "answer": sample.answer, "messages": messages[: sample.messages], "tools": tools,
            }
        )  # fmt: skip
    return rows


def _kept(given: Subjects, contract: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Where the record of these weights, on these conversations and rows, is kept."""
    folders = [path for path in (given.base, given.adapter, given.merged if not given.adapter else None) if path]
    content = {
        "form": FORM,
        "weights": [
            {file.name: manifest.sha256_of(file) for file in sorted(folder.iterdir()) if _decides(file)}
            for folder in folders
        ],
        "conversations": contract["conversations"],
        "rows": rows,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    return paths.OUTPUTS / filenames.VERIFY / "trained" / f"{digest[:32]}.json"


def _decides(file: Path) -> bool:
    """Whether what a model says depends on a file of its folder, its tokenizer aside."""
    return file.suffix == ".safetensors" or file.name in (filenames.CONFIG, filenames.ADAPTER_CONFIG)


def _computed(given: Subjects, contract: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As reference.json, of base and adapter, or of a merged folder, with its base where that is given."""
    if given.adapter and given.base:
        recorded: dict[str, Any] = _fresh(endpoint_model.record_with_adapter, given.base, given.adapter, contract, rows)
        return recorded
    recorded = _fresh(endpoint_model.record, given.merged, contract, rows)
    if given.base:
        golden, values = _fresh(endpoint_model.beneath, given.base, recorded, contract)
        for ours, theirs in zip(recorded["golden"], golden, strict=True):
            ours["base"] = theirs["trained"]
        for probe, base in zip(recorded["probes"], values, strict=True):
            probe["base"] = base
    return recorded


def _fresh(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own, which gives a model's memory back."""
    from lockstep.merging import certificate  # it loads torch

    return certificate.in_fresh_process(work, *arguments)
