"""The gate's proof that answers end where they must; the real vLLM is asked in tests/e2e and tests/faults."""

import json
from pathlib import Path

import pytest

from lockstep.serving import gate_tokens
from lockstep.serving.gate_findings import Findings
from lockstep.serving.probe import Server


@pytest.mark.parametrize(
    ("ends", "says"), [({2}, None), (set(), "stop token 2 does not end"), ({2, 7}, "token 7 ends an answer")]
)
def test_stop_tokens_end_an_answer_and_what_answers_consist_of_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: set[int], says: str | None
) -> None:
    added = [
        {"id": 2, "special": True},
        {"id": 7, "special": False},
        {"id": 3, "special": True},
        {"id": 50, "special": False},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    agreed = {"conversations": [{"prompt_ids": [1]}], "stop_ids": [2]}
    within = gate_tokens.ordinary_tokens(tmp_path, agreed, [{"input_ids": [9, 9, 5, 4, 5, 2], "start": 2}], 50)
    assert within == [7, 5, 4]
    monkeypatch.setattr(
        Server,
        "complete",
        lambda self, model, prompt, allowed_token_ids, **_: {
            "finish_reason": "stop" if allowed_token_ids[0] in ends else "length"
        },
    )
    gate_tokens.check_stops(Server("http://127.0.0.1:9/v1", "s"), "r", agreed, within, found := Findings())
    assert found.report == {"ordinary_tokens": 3}
    assert (found.reasons == []) if says is None else (len(found.reasons) == 1 and says in found.reasons[0])
