"""A split on disk, as `datasets.load_from_disk` reads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lockstep.artifacts import atomic, filenames, manifest
from lockstep.data import conversation_row
from lockstep.data.encoding import Sample


class Split:
    """Written sample by sample, so that memory stays flat however many there are.

    Args:
        folder: of the split; made here.
    """

    def __init__(self, folder: Path) -> None:
        from datasets import Dataset, Features, List, Value, disable_progress_bars
        from datasets.arrow_writer import ArrowWriter

        disable_progress_bars()
        text, ids = Value("string"), List(Value("int32"))
        message = {
            "role": text,
            "content": text,
            "extra": text,  # JSON of what else a message holds, such as tool calls, or null
        }
        columns = {
            "input_ids": ids,
            "labels": ids,
            "answer": Value("int32"),  # tokens of the last answer
            "messages": List(message),
            "tools": text,  # JSON, or null
            "row": text,
        }
        features = Features(columns)
        self.folder = folder
        Dataset.from_dict({name: [] for name in features}, features=features).save_to_disk(folder, num_shards=1)
        self._file = next(folder.glob("*.arrow"))
        self._writer = ArrowWriter(path=str(self._file), features=features)
        self._read: Any = None
        self.rows = 0

    def write(self, samples: Sequence[Sample]) -> None:
        """Add samples, in order."""
        self.rows += len(samples)
        for sample in samples:
            messages, tools = conversation_row.packed(sample.row)
            messages = messages[: sample.messages]  # of a row with a sample a turn, up to that turn
            self._writer.write(
                {
                    "input_ids": sample.input_ids,
                    "labels": sample.labels,
                    "answer": sample.answer,
                    "messages": messages,
                    "tools": tools,
                    "row": sample.row.name,
                }
            )

    def line(self, place: int) -> dict[str, Any]:
        """Sample number `place`, once the file is closed."""
        from datasets import load_from_disk

        self._read = self._read or load_from_disk(self.folder)
        return dict(self._read[place])

    def close(self) -> None:
        """Finish the file. Raises OSError where the disk is full."""
        self._writer.finalize()
        state = self.folder / filenames.SAVED_STATE
        # the name under which datasets would cache what is computed from these rows
        fingerprint = {"_fingerprint": manifest.sha256_of(self._file)[:16]}
        atomic.write_json(state, atomic.read_json(state) | fingerprint)
