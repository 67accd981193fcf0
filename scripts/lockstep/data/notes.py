"""Lines for a person about rows that were kept, or left out on purpose: what was read otherwise, or not at all."""

from collections import Counter
from collections.abc import Iterator, Sequence

from lockstep.data.hints import names
from lockstep.data.ledger import Ledger
from lockstep.settings.schema import Data
from lockstep.text.unicode import drop_controls

# Of a remark's code: what the rows do, and what to make of it. {} is an example.
REMARKS = {
    "placeholder": "hold a placeholder such as {} ({}), which the model learns to say: fill it in, if it is one",
    "media_placeholder": "hold {} ({}), which other programs replace by a picture or a sound: it is trained as these "
    "letters, without any picture; leave these rows out if they need one",
    "calls_unlisted_tool": "call a tool that they do not list, such as {} ({}): no prompt tells the model of it; "
    "add it to their tools",
    "null_argument": "call such a tool with a null, as {} ({}), which is trained as written: leave it out of the "
    "file if only the export of a table put it there",
    "added_word": "hold words such as {} ({}), which the base's tokenizer takes for tokens: they are trained and "
    "served as text; --data.allow_tokens keeps those that it names tokens",
    "marked_turn": "have turns that are marked not to be trained (the first: {} of {}): those carry no loss",
    "nulls_left_out": "had nulls in tools or calls that their file format made ({} in {}): these were left out",
}


def lines(ledger: Ledger, data: Data) -> Iterator[str]:
    """One line for each thing that is no fault and that a user should know."""
    accounts = list(ledger.files.values())
    if renamed := _sum([account.renamed for account in accounts]):
        pairs = ", ".join(" ".join(drop_controls(pair).split()) for pair in renamed)
        yield f"fields are read under other names: {pairs}"
    if ignored := _sum([account.ignored for account in accounts]):
        shown = [(repr(name) if name != name.strip() else name, rows) for name, rows in ignored.most_common()]
        yield f"fields that nothing reads: {names(tuple(f'{name} ({rows})' for name, rows in shown))}"
    noted = _sum([account.noted for account in accounts])
    for code, text in REMARKS.items():
        if noted[code]:
            row, example = ledger.examples[code]
            yield f"{noted[code]} rows {text.format(' '.join(drop_controls(example).split()), row)}"
    dropped = ledger.dropped
    if count := dropped["marked_untrained"]:
        reject = ledger.first.get("marked_untrained")
        where = f" ({reject.detail}; the first is {reject.place})" if reject else ""
        yield f"{count} rows are marked not to be trained{where} and are left out"
    if count := dropped["duplicate"]:
        others = ",".join(name for name in data.drop if name != "duplicate") or "null"
        yield f"{count} rows are repeated and one copy of each is kept: --data.drop {others} keeps all copies"
    if any({"chosen", "rejected"} <= account.ignored.keys() for account in accounts):
        yield "rows hold preferences (chosen, rejected), which are not trained: only their other answers are"


def _sum(counters: Sequence[Counter[str]]) -> Counter[str]:
    return sum(counters, Counter[str]())
