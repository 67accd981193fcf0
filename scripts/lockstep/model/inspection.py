"""A stranger's model folder, looked at before anything trusts it: first as bytes, then by libraries, within limits."""

from functools import partial
from pathlib import Path

from lockstep.artifacts import filenames
from lockstep.model import file_checks, library_checks, limited_process


def check_model(folder: Path) -> None:
    """Refuse a model that could run code, has no bounds, or cannot be loaded.

    Raises:
        UserError: names the file or the step.
    """
    for file in sorted(folder.iterdir()):
        file_checks.check_content(file)
    limited_process.run(library_checks.model_steps, folder)


def check_adapter(files: list[Path], base: Path) -> None:
    """The same for those files of an adapter's folder that are taken.

    Args:
        files: a tokenizer's may be among them.
        base: the folder of its base.

    Raises:
        UserError: names the file or the step.
    """
    file_checks.check_files(files)
    tokenizer = any(file.name == filenames.TOKENIZER_CONFIG for file in files)
    limited_process.run(partial(library_checks.adapter_steps, base=base, tokenizer=tokenizer), files[0].parent)
