"""Greedy answers of a model in training to a few held-out prompts: what it says by now."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lockstep.data.collator import IGNORE
from lockstep.processes import busy
from lockstep.settings.schema import Train
from lockstep.training import packed_attention

if TYPE_CHECKING:
    from lockstep.prompts.template import Template
    from lockstep.training.trainer import SupervisedTrainer


def of_training(train: Train, trainer: "SupervisedTrainer", chat: "Template", held_out: Any) -> "SampleAnswers":
    """Answers to the first held-out rows, as many and as long as the settings say."""
    rows = [held_out[place] for place in range(min(train.sample_rows, len(held_out)))]
    return SampleAnswers(trainer.network, chat, rows, train.sample_tokens, trainer.autocast)


class SampleAnswers:
    """Has the network answer the prompts of some rows, as it is now.

    It draws no random number and leaves the network in the mode that it was in.

    Args:
        rows: `input_ids`, `labels` and `row`; the prompt is what stands before the first supervised token.
        tokens: longest answer.
        autocast: makes a context in which the network computes as in training.
    """

    def __init__(
        self, network: Any, chat: "Template", rows: Sequence[dict[str, Any]], tokens: int, autocast: Callable[[], Any]
    ) -> None:
        from transformers import GenerationConfig

        self.network, self.chat, self.rows, self.autocast = network, chat, rows, autocast
        pad = chat.tokenizer.pad_token_id
        self.greedy = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=chat.stop_ids,
            pad_token_id=chat.stop_ids[0] if pad is None else pad,
        )

    def __call__(self) -> list[dict[str, Any]]:
        """A record for samples.jsonl for each row: `row`, `prompt`, `answer`, `wanted`, `ended`."""
        training = self.network.training
        self.network.eval()
        own = packed_attention.plain(self.network)  # generation needs a cache, which packed attention does not have
        with torch.no_grad(), self.autocast(), packed_attention.implementation(self.network, own):
            records = [self._record(row) for row in busy.steps(self.rows, "sample answers", unit="answers")]
        self.network.train(training)
        return records

    def _record(self, row: dict[str, Any]) -> dict[str, Any]:
        start = next(place for place, label in enumerate(row["labels"]) if label != IGNORE)
        device = next(self.network.parameters()).device
        prompt = torch.tensor([row["input_ids"][:start]], device=device)
        generated = self.network.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=self.greedy, use_cache=True
        )
        answer_ids = generated[0, start:].tolist()
        return {
            "row": row["row"],
            "prompt": self._decode(prompt[0]),
            "answer": self._decode(answer_ids),
            "wanted": self._decode([label for label in row["labels"] if label != IGNORE]),
            "ended": answer_ids[-1] in self.chat.stop_ids,
        }

    def _decode(self, ids: Any) -> str:
        text: str = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return text
