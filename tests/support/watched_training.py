"""Stage 02 with a note of how each process holds the model that it trains: $WATCHED/<rank>.json, before the first step.

A program, for `accelerate launch` in the place of scripts/02_train_qlora.py:

    model       the class of what is trained, such as DistributedDataParallel
    sharded     how many of its weights are DTensors, of which this process holds a part
    weights     how many there are
    fast        whether adapters are computed by the fast pass
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def watch() -> None:
    from torch.distributed.tensor import DTensor

    from lockstep.training.trainer import SupervisedTrainer

    step = SupervisedTrainer.training_step

    def noting(trainer: Any, model: Any, *given: Any) -> Any:
        weights = list(model.parameters())
        note = {
            "model": type(model).__name__,
            "sharded": sum(isinstance(weight, DTensor) for weight in weights),
            "weights": len(weights),
            "fast": bool(trainer.fast and trainer.fast.whole),
        }
        (Path(os.environ["WATCHED"]) / f"{os.environ['RANK']}.json").write_text(json.dumps(note))
        SupervisedTrainer.training_step = step  # type: ignore[method-assign]
        return step(trainer, model, *given)

    SupervisedTrainer.training_step = noting  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.path.insert(0, str(SCRIPTS))
    watch()
    runpy.run_path(str(SCRIPTS / "02_train_qlora.py"), run_name="__main__")
