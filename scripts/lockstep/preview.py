"""Samples as a person sees them: which tokens are prompt, which are trained, where a turn ends."""

import html
import json
from collections.abc import Iterator
from typing import Any

from lockstep.collator import IGNORE
from lockstep.rows import Reject
from lockstep.template import Template

ROWS = 60  # samples on the page, and at most as many rejects


def token_spans(sample: dict[str, Any], chat: Template) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token: prompt, answer, end (the end-of-turn token), control.

    Tokens that hold only a part of a character, as in Chinese text, are joined until it is whole.
    """
    controls = set(chat.tokenizer.added_tokens_decoder)
    waiting: list[int] = []
    pairs = list(zip(sample["input_ids"], sample["labels"], strict=True))
    for place, (token, label) in enumerate(pairs):
        kind = "answer" if label != IGNORE else "prompt"
        if token in controls:
            kind = "end" if label != IGNORE else "control"
        waiting.append(token)
        text = chat.tokenizer.decode(waiting)
        following = pairs[place + 1] if place + 1 < len(pairs) else None
        goes_on = following and following[0] not in controls and (following[1] != IGNORE) == (label != IGNORE)
        if text.endswith("\ufffd") and goes_on and token not in controls:
            continue
        yield kind, text
        waiting = []


def page(samples: dict[str, list[dict[str, Any]]], rejects: list[Reject], ledger: Any, chat: Template) -> str:
    """One self-contained page: the first rows of each split as coloured tokens, and the rejects."""
    body = []
    for split, chosen in samples.items():
        body.append(f"<h2>{split} ({len(chosen)} rows)</h2>")
        for sample in chosen[: ROWS // len(samples)]:
            spans = "".join(
                f'<span class="{kind}">{html.escape(text)}</span>' for kind, text in token_spans(sample, chat)
            )
            body.append(f"<h3>{html.escape(sample['row'])} · {len(sample['input_ids'])} tokens</h3><pre>{spans}</pre>")
    body.append(f"<h2>rejects ({len(rejects)})</h2>")
    for reject in rejects[:ROWS]:
        where = html.escape(f"{reject.file}:{reject.line} {reject.reason}")
        body.append(f"<h3>{where}</h3><pre>{html.escape(reject.text[:2000])}</pre>")
    body.append(f"<h2>ledger</h2><pre>{html.escape(json.dumps(ledger, indent=2, ensure_ascii=False))}</pre>")
    return PAGE.replace("BODY", "\n".join(body))


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What will be trained</title>
<meta name="viewport" content="width=device-width"><style>
:root{color-scheme:light dark}body{font:16px/1.6 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:14px/1.7 ui-monospace,monospace}h3{font-size:1rem;margin:1.5rem 0 0}
span{border-radius:3px;box-shadow:inset 0 0 0 .5px #8885}.prompt{color:#888}.control{background:#8883;color:#888}
.answer{background:#3a93}.end{background:#e733;font-weight:bold}</style>
<h1>What will be trained</h1><p><span class="prompt">prompt</span> · <span class="control">control token</span> ·
<span class="answer">supervised</span> · <span class="end">end of turn, supervised</span></p>
BODY</html>
"""
