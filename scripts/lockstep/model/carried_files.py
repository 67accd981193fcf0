"""Files of a base that go along with what is made of it: how images and sound are prepared, and its licence."""

import shutil
from pathlib import Path

from lockstep.artifacts import atomic

PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
LICENCES = "LICENSE*"


def carry(base: Path, out: Path) -> None:
    """Copy them into a folder.

    Nothing else of the base is copied: its chat template and tokenizer are not those that training used, and vLLM
    would take a tokenizer of another format (tekken.json) before ours.
    """
    for name in PROCESSORS:
        if (base / name).exists():
            content = atomic.read_json(base / name)
            content.pop("chat_template", None)  # of older processors
            atomic.write_json(out / name, content)
    for file in base.glob(LICENCES):
        shutil.copyfile(file, out / file.name)
