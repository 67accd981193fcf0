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
    # what passes a state from token to token, or asks for places by itself, does not know padding at the front
    together = train.per_device_eval_batch_size if trainer.collate.packed else 1
    return SampleAnswers(trainer.network, chat, rows, train.sample_tokens, trainer.autocast, together)


class SampleAnswers:
    """Has the network answer the prompts of some rows, as it is now.

    It draws no random number and leaves the network in the mode that it was in.

    Args:
        rows: `input_ids`, `labels` and `row`; the prompt is what stands before the first supervised token.
        tokens: longest answer.
        autocast: makes a context in which the network computes as in training.
        together: how many prompts are answered at once; each pass unpacks all 4-bit weights, for however many.
    """

    def __init__(
        self,
        network: Any,
        chat: "Template",
        rows: Sequence[dict[str, Any]],
        tokens: int,
        autocast: Callable[[], Any],
        together: int = 1,
    ) -> None:
        from transformers import GenerationConfig

        self.network, self.chat, self.autocast = network, chat, autocast
        self.batches = [rows[start : start + together] for start in range(0, len(rows), together)]
        pad = chat.tokenizer.pad_token_id
        self.greedy = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=chat.stop_ids,
            pad_token_id=chat.stop_ids[0] if pad is None else pad,
        )

    def __call__(self) -> list[dict[str, Any]]:
        """A record for samples.jsonl for each row: `row`, `prompt`, `answer`, `wanted`, `ended`."""
        training = self.network.training
        self.network.eval()
        own = packed_attention.plain(self.network)  # generation needs a cache, which packed attention does not have
        with torch.no_grad(), self.autocast(), packed_attention.implementation(self.network, own):
            batches = busy.steps(self.batches, "sample answers", unit="batches")
            records = [record for rows in batches for record in self._records(rows)]
        self.network.train(training)
        return records

    def _records(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One for each row; shorter prompts are padded at the front, so that all answers begin at one place."""
        prompts = [row["input_ids"][: _first_supervised(row)] for row in rows]
        longest = max(map(len, prompts))
        device = next(self.network.parameters()).device
        padding = [longest - len(prompt) for prompt in prompts]
        pad = self.greedy.pad_token_id
        padded = [[pad] * count + prompt for count, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * count + [1] * len(prompt) for count, prompt in zip(padding, prompts, strict=True)]
        generated = self.network.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=self.greedy,
        )
        answers = [self._until_its_end(ids) for ids in generated[:, longest:].tolist()]
        return [
            {
                "row": row["row"],
                "prompt": self._decode(prompt),
                "answer": self._decode(answer),
                "wanted": self._decode([label for label in row["labels"] if label != IGNORE]),
                "ended": answer[-1] in self.chat.stop_ids,
            }
            for row, prompt, answer in zip(rows, prompts, answers, strict=True)
        ]

    def _until_its_end(self, ids: list[int]) -> list[int]:
        """An answer with its end token, without the padding after it while others went on."""
        ends = (place + 1 for place, token in enumerate(ids) if token in self.chat.stop_ids)
        return ids[: next(ends, len(ids))]

    def _decode(self, ids: Any) -> str:
        text: str = self.chat.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _first_supervised(row: dict[str, Any]) -> int:
    return next(place for place, label in enumerate(row["labels"]) if label != IGNORE)
