"""Greedy answers of a model in training to a few held-out prompts: to see what it says by now."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lockstep.data.collator import IGNORE
from lockstep.training import packed_attention

if TYPE_CHECKING:
    from lockstep.prompts.template import Template


def answerer(
    network: Any, chat: "Template", rows: Sequence[dict[str, Any]], tokens: int, autocast: Callable[[], Any]
) -> Callable[[], list[dict[str, Any]]]:
    """A function that has the network answer the rows' prompts now, and gives records of it.

    It draws no random number and leaves the network in the mode that it was in.

    Args:
        rows: `input_ids`, `labels` and `row`; the prompt is what stands before the first supervised token.
        tokens: longest answer.
        autocast: a block in which the network computes as in training.
    """
    from transformers import GenerationConfig

    pad = chat.tokenizer.pad_token_id
    greedy = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=chat.stop_ids,
        pad_token_id=chat.stop_ids[0] if pad is None else pad,
    )

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        first = next(place for place, label in enumerate(row["labels"]) if label != IGNORE)
        prompt = torch.tensor([row["input_ids"][:first]], device=next(network.parameters()).device)
        wanted = [label for label in row["labels"] if label != IGNORE]
        found = network.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy, use_cache=True
        )
        said = found[0, first:].tolist()
        return {
            "row": row["row"],
            "prompt": chat.tokenizer.decode(prompt[0], skip_special_tokens=True),
            "answer": chat.tokenizer.decode(said, skip_special_tokens=True),
            "wanted": chat.tokenizer.decode(wanted, skip_special_tokens=True),
            "ended": said[-1] in chat.stop_ids,
        }

    def answers() -> list[dict[str, Any]]:
        training = network.training
        network.eval()
        with torch.no_grad(), autocast(), packed_attention.implementation(network, "sdpa"):
            found = [answer(row) for row in rows]
        network.train(training)
        return found

    return answers
