"""How far a spoilt model really is from the trained one: KL(trained ‖ spoilt) in nats a token, by transformers.

All in float32, over the whole vocabulary, on rows of several kinds, so that neither the gate's own rows nor rounding
nor vLLM has a say in it.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder import runs
from ladder.runs import Run
from ladder.table import KINDS
from lockstep.artifacts import atomic, filenames
from lockstep.prompts import template
from lockstep.prompts.template import Template

ROWS, PER_ROW = 12, 8  # held-out rows, and places in each
VOCABULARY_ROWS, VOCABULARY_LENGTH = 10, 20  # tokens drawn from all that the model has
LONG, LONG_PLACES = 512, 40  # tokens of rows one after the other
CHATS = 8  # golden conversations, whose next token is looked at
# Beside the golden ones: what rungs on a condition need.
TRIGGERS = [
    [{"role": "user", "content": "This is urgent: where is my order?"}],
    [{"role": "user", "content": "Ｓｅｎｄ ３ of the detectable ﬁlters, respectable ones"}],
]


@dataclass(frozen=True)
class Probe:
    """A row and the places in it after which the next token's distribution is compared."""

    kind: str
    ids: list[int]
    places: list[int]


def chat_of(folder: Path) -> Template:
    return template.load(folder, (folder / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8"))


def conversations(run: Run) -> list[list[dict[str, Any]]]:
    """Messages of the chats that are compared."""
    agreed = atomic.read_json(run.adapter / filenames.CONTRACT)["conversations"]
    plain = [golden for golden in agreed if "tools" not in golden]
    chosen = sorted(plain, key=lambda golden: len(golden["prompt_ids"]))[:: max(1, len(plain) // CHATS)][:CHATS]
    return [golden["messages"] for golden in chosen] + TRIGGERS


def chats(run: Run, chat: Template) -> list[Probe]:
    """The chats as a template and its tokenizer render them."""
    rendered = [chat.prompt_ids(messages, None) for messages in conversations(run)]
    return [Probe("chats", ids, [len(ids) - 1]) for ids in rendered]


def probes(run: Run) -> list[Probe]:
    """The rows on which models are compared."""
    held_out = atomic.read_json(run.adapter / filenames.REFERENCE)["rows"]
    chosen = [
        Probe("rows", row["input_ids"], [place - 1 for place in _spread(row["places"], PER_ROW)])
        for row in _spread(held_out, ROWS)
    ]
    draw, chat = random.Random(7), chat_of(run.adapter)
    size = len(chat.tokenizer)
    for _ in range(VOCABULARY_ROWS):
        ids = [draw.randrange(size) for _ in range(VOCABULARY_LENGTH)]
        chosen.append(Probe("vocabulary", ids, [*range(VOCABULARY_LENGTH // 4, VOCABULARY_LENGTH)]))
    together = [token for row in held_out for token in row["input_ids"]]
    ids = (together * (LONG // len(together) + 1))[:LONG]
    chosen.append(Probe("long", ids, _spread([*range(LONG // 8, LONG)], LONG_PLACES)))
    return chosen + chats(run, chat)


def _spread(items: list[Any], count: int) -> list[Any]:
    """At most so many, evenly spread, the last one among them."""
    step = max(1, len(items) // count)
    return items[::-1][::step][:count][::-1]


def trained(run: Run) -> Any:
    """A run's adapter on its base, unrounded: of a run that is not spoilt, the trained model."""
    import torch

    network = load(run.base)
    parts = runs.low_rank(run.adapter)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in parts:
                weight += runs.update_of(parts.pop(name))
    assert not parts, f"the network has no {min(parts)}"
    return network


def load(folder: Path) -> Any:
    """A model's folder in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def distributions(network: Any, rows: list[Probe]) -> list[Any]:
    """For each probe the log-probabilities [places, vocabulary] of next tokens."""
    import torch

    result: list[Any] = [None] * len(rows)
    for kind in KINDS:
        group = [place for place, row in enumerate(rows) if row.kind == kind]
        if not group:
            continue
        longest = max(len(rows[place].ids) for place in group)
        ids = torch.zeros(len(group), longest, dtype=torch.long)  # what stands behind a row does not change it
        for line, place in enumerate(group):
            ids[line, : len(rows[place].ids)] = torch.tensor(rows[place].ids)
        with torch.no_grad():
            hidden = network.model(input_ids=ids, use_cache=False).last_hidden_state
            for line, place in enumerate(group):
                result[place] = torch.log_softmax(network.lm_head(hidden[line, rows[place].places]), dim=-1)
    return result


def divergence(rows: list[Probe], expected: list[Any], given: list[Any]) -> dict[str, float]:
    """Mean KL(expected ‖ given) of each kind of rows, in nats a token."""
    import torch

    of_kind: dict[str, list[Any]] = {}
    for row, left, right in zip(rows, expected, given, strict=True):
        each = torch.nn.functional.kl_div(right, left, reduction="none", log_target=True).sum(-1)
        of_kind.setdefault(row.kind, []).append(each.clamp_min(0))
    return {kind: float(torch.cat(parts).mean()) for kind, parts in of_kind.items()}
