"""How long a training took is known from its log after it was resumed."""

import json
from pathlib import Path

from lockstep.training import progress


def test_seconds_and_tokens_up_to_a_step_are_those_of_the_last_line_before_it(tmp_path: Path) -> None:
    assert progress.spent(tmp_path, 4) == (0.0, 0)
    lines = [{"step": step, "seconds": 10.0 * step, "tokens_per_second": 50.0} for step in (1, 4, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert progress.spent(tmp_path, 4) == (40.0, 2000)
    assert progress.spent(tmp_path, 5) == (50.0, 2500)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "tokens_per_second": 50.0}\n')  # of an earlier version
    assert progress.spent(tmp_path, 4) == (0.0, 0)
