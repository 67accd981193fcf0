"""A file's questions, as chat requests ask them."""

from collections.abc import Iterator
from pathlib import Path

from lockstep import manifest, records, template
from lockstep.config import Settings
from lockstep.errors import UserError
from lockstep.template import Message

Question = tuple[list[Message], str | None]  # and the reference answer, where the row has one


def read(file: Path, style: str, system: str | None = None) -> Iterator[Question]:
    """Each line's messages and reference: Alpaca fields, or `messages` up to the answer at their end.

    Args:
        style: the template that folds instruction and input, see `style_of`.
        system: a system message for conversations that bring none.

    Raises:
        UserError: not readable, or a line is neither; names the line.
    """
    before = [{"role": "system", "content": system}] if system else []
    for number, row in records.json_lines(file):
        try:
            if "messages" in row:
                said = list(row["messages"])
                reference = said.pop()["content"] if said[-1]["role"] == "assistant" else None
                yield [*(before if said[0]["role"] != "system" else []), *said], reference
            else:
                content = template.fold(row["instruction"], row.get("input") or "", style)
                yield [*before, {"role": "user", "content": content}], row.get("output")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(f"{file}:{number} has neither `instruction` nor `messages`") from error


def style_of(settings: Settings) -> str:
    """The template that folds instruction and input: the run's, where its data is here."""
    data = settings.run_dir / "data"
    if not (data / manifest.FILE).exists():
        return settings.data.template
    return str(manifest.read(data).config["data"]["template"])
