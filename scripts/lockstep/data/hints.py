"""What helps where rows were dropped: the setting or the change of the file, for the reason's code."""

import shlex
from collections.abc import Callable

from lockstep.data import keys
from lockstep.data.records import Reject
from lockstep.text.unicode import drop_controls

SHOWN = 12  # names of fields in a message


def hint(reject: Reject) -> str:
    """What a message adds about a row that was dropped; empty where nothing is known to help."""
    if reject.reason.startswith("missing_") and reject.keys:
        return _columns(reject)
    make = _HINTS.get(reject.reason)
    return f": {make(reject)}" if make else ""


def names(keys: tuple[str, ...]) -> str:
    """Names of fields for a message of one line."""
    shown = [" ".join(drop_controls(key).split())[:40] or repr(key) for key in keys[:SHOWN]]
    return ", ".join(shown) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _columns(reject: Reject) -> str:
    """The row's keys, and how to say which of them are the question and the answer."""
    keys = reject.keys
    if " is not " in reject.detail:
        return f": {_near(reject)}"
    if reject.reason in ("missing_content", "missing_value"):
        return f": a turn needs a role and a text, under names that --data.columns {reject.reason[8:]}=NAME can give"
    if len(keys) < 2:
        return f": its only key is {names(keys)}, and a row needs a question and an answer (data/README.md)"
    question, answer = (keys[0], keys[1]) if len(keys) == 2 else ("QUESTION", "ANSWER")
    # spaces at a name's ends may be left out; what else a shell would read is quoted
    columns = shlex.quote(f"instruction={drop_controls(question).strip()},output={drop_controls(answer).strip()}")
    return f": its keys are {names(keys)}; name those of the question and the answer: --data.columns {columns}"


def _json(reject: Reject) -> str:
    if reject.detail.startswith("not JSON"):  # of a field
        return "lists in fields must be JSON text, as json.dumps writes them"
    if reject.text.rstrip().endswith(","):
        return "lines of .jsonl have no comma at their ends; an array has [ before its rows and ] after them"
    return "each line must be one JSON value; a table needs the suffix .csv, .tsv or .parquet"


def _near(reject: Reject) -> str:
    quoted, _, rest = reject.detail.partition(" is not ")
    ours, theirs = rest.split(" ")[0], keys.fold(quoted)  # columns are found whatever spaces surround their names
    column = ours if theirs.isascii() else theirs
    return f"rename it, or read it with --data.columns {ours}={column}" if ours else "rename or remove one of them"


def _preference(reject: Reject) -> str:
    if "chosen" not in reject.keys:
        return "rows need one answer each"
    if "prompt" in reject.keys:
        return "--data.columns completion=chosen trains on the chosen answers"
    if "conversations" in reject.keys or "messages" in reject.keys:
        return "append the chosen answer to the turns to train on it"
    if "instruction" in reject.keys:
        return "--data.columns output=chosen trains on the chosen answers"
    return "--data.columns messages=chosen trains on the chosen conversations"


_HINTS: dict[str, Callable[[Reject], str]] = {
    "preference_pair": _preference,
    "unclear_key": _near,
    "unclear_mark": lambda reject: "correct the mark, or take it out",
    "marked_untrained": lambda reject: "rename the mark's field if it says something else",
    "not_an_object": lambda reject: "each row must be a JSON object (data/README.md)",
    "unknown_role": lambda reject: (
        "known are system, user, human, assistant, gpt and tool, under a name that "
        "--data.columns role=NAME,content=NAME can give"
    ),
    "bad_json": _json,
    "too_long": lambda reject: "raise --data.max_length, or set --data.truncation truncate",
    "not_text": lambda reject: "pictures and sounds are not trained on; take the field out if the text stands alone",
    "template_drops_text": lambda reject: "choose another --data.template, or a model whose template writes it",
    "wrong_columns": lambda reject: "put fields that hold the separator in quotes",
}
