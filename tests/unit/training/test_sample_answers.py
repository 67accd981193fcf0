"""Sample answers: of several prompts at once they are those of each by itself."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from support import tiny
from transformers import AutoModelForCausalLM

from lockstep.data.collator import IGNORE
from lockstep.training.sample_answers import SampleAnswers

PROMPTS = ("tea?", "Who are you, and where do you come from?", "你是谁？", "tea?")
TOKENS = 12


def rows(tokenizer: Any) -> list[dict[str, Any]]:
    made = []
    for number, prompt in enumerate(PROMPTS):
        ids = tokenizer.encode(prompt)
        made.append({"row": number, "input_ids": [*ids, 5, 6], "labels": [IGNORE] * len(ids) + [5, 6]})
    return made


def test_several_prompts_at_once_get_the_answers_of_each_by_itself(tiny_model: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).train()
    tokenizer = tiny.tokenizer()
    asked = rows(tokenizer)
    prompt = torch.tensor([asked[1]["input_ids"][:-2]])
    greedy = network.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=0)
    for stop in (tokenizer.eos_token_id, int(greedy[0, -2])):  # the second ends an answer that others outlast
        chat: Any = SimpleNamespace(tokenizer=tokenizer, stop_ids=[stop])
        own, together = (SampleAnswers(network, chat, asked, TOKENS, nullcontext, size)() for size in (1, 3))
        assert together == own and network.training
        assert len({record["answer"] for record in own}) > 1  # the model tells the prompts apart
    assert 0 < sum(record["ended"] for record in own) < len(own)
