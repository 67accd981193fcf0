"""Families of different kinds through all stages, the real vLLM and the gate: merged, and as adapters where it can."""

from pathlib import Path

import pytest
from support import served_families
from support.serving import ask, report, served

pytestmark = pytest.mark.e2e
CHAT = "/v1/chat/completions"
ASK = [{"role": "user", "content": "你是谁？"}]
NO_DROPOUT = ("--lora.lora_dropout", "0")

MERGED, BOTH = ("merged",), ("merged", "lora")
IN_CI = {"Qwen3.5": BOTH}
OTHERS = {
    "Phi-3": BOTH, "GLM-4": MERGED, "OLMo 2": BOTH, "Gemma 4 text": BOTH, "Qwen3-MoE": MERGED, "gpt-oss": MERGED,
    "LFM2": BOTH, "Falcon-H1": BOTH, "Gemma 3": BOTH, "Gemma 4": BOTH, "Ministral 3": BOTH, "Qwen3-VL": BOTH,
    "Qwen3.5-MoE": MERGED,
}  # fmt: skip
CASES = [
    *(pytest.param(name, modes, id=name) for name, modes in IN_CI.items()),
    *(pytest.param(name, modes, id=name, marks=pytest.mark.slow) for name, modes in OTHERS.items()),
]


@pytest.mark.parametrize(("name", "modes"), CASES)
def test_a_family_is_served_once_it_is_proved(name: str, modes: tuple[str, ...], tmp_path: Path) -> None:
    home = served_families.finished(name, tmp_path, *NO_DROPOUT, base="lora" in modes)
    for mode in modes:
        with served(home, "--serve.mode", mode, PYTHONPATH=served_families.STANDINS) as server:
            outcome = report(home)
            assert outcome["passed"] and outcome["mode"] == mode and outcome["differs_from_base"], outcome
            assert outcome["modules_active"] == outcome["modules_expected"] and outcome["token_mismatches"] == 0
            assert (outcome["modules_active"] is None) == (mode == "merged")
            status, answer = ask(server.url + CHAT, {"messages": ASK, "max_tokens": 8})
            assert status == 200 and answer["usage"]["completion_tokens"] >= 1
