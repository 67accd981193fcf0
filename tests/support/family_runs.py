"""Stages 00 to 03 on a family's tiny model, and what became of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import families, programs, tiny

from lockstep.merging import serving_route

STAGES = ("00_download_model.py", "01_data_collator.py", "02_train_qlora.py", "03_merge_lora.py")
FEW_STEPS = (
    "--train.per_device_train_batch_size", "2", "--train.gradient_accumulation_steps", "2", "--train.max_steps", "8",
    "--train.save_steps", "8", "--train.eval_steps", "8", "--train.learning_rate", "1e-2",
)  # fmt: skip
ADAPTER = ("--lora.r", "4", "--lora.lora_alpha", "8", "--lora.lora_dropout", "0")  # experts are trained without dropout
ROWS = 60
EXPERT = re.compile(r"(^|\.)experts\.(?!.*bias)")


@dataclass(frozen=True)
class Outcome:
    """What became of a family's run.

    Attributes:
        stage: the last that was run, by its number.
        refusal: its error's line, where it was refused; None where the certificate was passed.
        packed: rows were trained end to end, not padded; None where there was no training.
        share_4bit: of the base's parameters.
        experts: how many of the experts' weight tensors were adapted, and how many there are.
        kl_mean: of the merge that ships, in nats a position.
        bound: the certificate's.
        adapter: how the adapter can be served: lora, as it is; merged, only as part of a merged model; None without one.
    """

    family: str
    method: str
    stage: str
    refusal: str | None = None
    packed: bool | None = None
    share_4bit: float | None = None
    experts: tuple[int, int] | None = None
    kl_mean: float | None = None
    bound: float | None = None
    adapter: str | None = None


def run(family: families.Family, method: str, home: Path, *settings: str) -> Outcome:
    """Run the stages until one refuses. A traceback or another exit code is an AssertionError.

    Args:
        settings: more of them, for every stage.
    """
    source = home / "source"
    families.write(family, source / "model")
    tiny.rows(source / "rows.jsonl", ROWS)
    common = (
        "--run", "r", "--model.source", "local", "--model.path", str(source / "model"), "--model.name", "m",
        "--data.train_file", str(source / "rows.jsonl"), "--data.max_length", "200", "--method", method,
    )  # fmt: skip
    shown = ""
    for script in STAGES:
        words = FEW_STEPS + (ADAPTER if method != "full" else ()) if script.startswith("02") else ()
        ended = programs.run(home, script, *common, *words, *settings)
        shown += ended.stdout
        if ended.returncode:
            *_, last = ended.stderr.strip().splitlines() or [""]
            assert ended.returncode == 2 and last.startswith("error: "), f"{script}: {ended.stdout}\n{ended.stderr}"
            assert "Traceback" not in ended.stderr, ended.stderr
            return Outcome(family.name, method, script[:2], last.removeprefix("error: "))
    return _passed(family, method, home / "outputs" / "r", packed="rows end to end" in shown)


def _passed(family: families.Family, method: str, folder: Path, packed: bool) -> Outcome:
    """The figures of a finished run."""
    report = _read(folder / "merged/merge_report.json")
    coverage = _read(folder / "adapter/coverage.json")
    shipped = report["candidates"][report["strategy"]]
    base = folder.parents[1] / "models/m"
    route = serving_route.inspect(folder / "adapter", base).mode if method != "full" else None
    experts = {name: reason for name, reason in coverage["reasons"].items() if EXPERT.search(name)}
    adapted = sum(reason in ("adapter", "trained whole") for reason in experts.values())
    return Outcome(
        family.name, method, "03", None, packed, coverage["share_4bit"], (adapted, len(experts)) if experts else None,
        shipped["kl_mean"], report["bound"], route,
    )  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
