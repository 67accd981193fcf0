"""The system prompt that a chat template writes by itself."""

from pathlib import Path

from lockstep.artifacts import filenames
from lockstep.prompts import template, template_source
from lockstep.prompts.template import Refused, Template

_MARK = "LockstepSystem"


def of_template(chat: Template) -> str:
    """The system prompt of a conversation that brings none: baked in, or the template's own; empty where there is none.

    It is what stands where the template writes a system message that is given.
    """
    question = {"role": "user", "content": "?"}
    try:
        without, given = chat.render([question]), chat.render([{"role": "system", "content": _MARK}, question])
    except Refused:  # some templates take no system message
        return ""
    before, mark, after = given.partition(_MARK)
    if not mark or not (without.startswith(before) and without.endswith(after)):
        return ""
    return without[len(before) : len(without) - len(after)].strip()


def of_run(run_dir: Path) -> str | None:
    """The same of a run's model; None where it is not made yet."""
    for folder in (run_dir / filenames.MERGED, run_dir / filenames.ADAPTER):
        if (folder / filenames.MANIFEST).exists() and (text := template_source.of_folder(folder)):
            return of_template(template.load(folder, text))
    return None
