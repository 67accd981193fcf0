"""Rows → samples: the token ids that training sees, and which of them carry loss."""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow, strings
from lockstep.data.records import Reject
from lockstep.errors import UserError
from lockstep.prompts import answer_tokens
from lockstep.prompts.template import Dropped, Message, Refused, Template
from lockstep.settings.schema import Data

# What a template must name in its source, or it would leave that part of a conversation out.
NEEDS = {"tools": "tools", "tool_calls": "tool_calls", "reasoning_content": "reasoning"}
MOST_RENDERED = 2**26  # characters of all prompts of one row: thousands of turns


@dataclass
class Sample:
    """One training example.

    Attributes:
        input_ids: the prompt, the answer, and where a conversation has several, the turns between.
        labels: as long; IGNORE where a token carries no loss.
        row: the row that it was made of; several samples of one row are parts of its conversation.
        answer: how many tokens the last answer has, with the end of the turn.
        messages: how many of the row's messages it holds, the trained answer being the last.
        cut: how many tokens of the prompt were cut off.
        respelled: (place, text, text of its tokens) of answers that the tokenizer writes in another way.
    """

    input_ids: list[int]
    labels: list[int]
    row: ConversationRow
    answer: int
    messages: int
    cut: int = 0
    respelled: tuple[tuple[int, str, str], ...] = ()


@dataclass
class _Turn:
    """Ids of a prompt and an answer, their texts, and the texts that the ids stand for."""

    prompt: list[int]
    answer: list[int]
    texts: tuple[str, str]
    spelled: tuple[str, str]
    place: int = 0  # of the answer among the row's messages

    @property
    def whole(self) -> list[int]:
        return self.prompt + self.answer


class Sampler:
    """Renders and encodes rows, many at a time, by the template and the settings of a run."""

    def __init__(self, chat: Template, data: Data) -> None:
        self.chat, self.data = chat, data
        longest = max(map(len, chat.tokenizer.get_vocab()), default=1)
        self._limit = 4 * data.max_length * longest  # more characters cannot fit, however they are normalized

    def samples(self, rows: Sequence[ConversationRow]) -> list[list[Sample] | Reject]:
        """For each row its samples, or why there are none.

        Raises:
            UserError: a row is too long and the settings call that an error.
        """
        rendered = [self._render(row) for row in rows]
        texts: list[tuple[str, str]] = []
        for row_texts in rendered:
            if not isinstance(row_texts, Reject):
                texts += row_texts
        turns = iter(self._encode(texts))  # all in one call, which the tokenizer spreads over its threads
        samples: list[list[Sample] | Reject] = []
        for row, row_texts in zip(rows, rendered, strict=True):
            if isinstance(row_texts, Reject):
                samples.append(row_texts)
            else:
                row = self._noted(row)
                samples.append(self._assemble(row, list(islice(turns, len(row_texts)))))
        return samples

    def _noted(self, row: ConversationRow) -> ConversationRow:
        """The row with a remark where it holds words that the base's tokenizer takes for tokens."""
        held = (self.chat.text_token(text) for text in strings([row.messages, row.tools or ()]))
        word = next(filter(None, held), None) if self.chat.text_tokens else None
        if word is None:
            return row
        return replace(row, remarks=replace(row.remarks, noted={**row.remarks.noted, "added_word": word}))

    def _encode(self, texts: Sequence[tuple[str, str]]) -> list[_Turn]:
        """Turns of (prompt, answer)."""
        prompt_ids = self.chat.encode([prompt for prompt, _ in texts])
        answer_ids = self.chat.answer_ids([answer for _, answer in texts])
        spelled = zip(self.chat.decode(prompt_ids), self.chat.spelled(answer_ids), strict=True)
        return list(map(_Turn, prompt_ids, answer_ids, texts, spelled))

    def _render(self, row: ConversationRow) -> list[tuple[str, str]] | Reject:
        """(prompt, answer) of every turn to be trained, as text."""
        if fault := self._fault(row):
            return row.reject(*fault)
        places = self._places(row)
        texts = []
        try:
            if len(places) > 4 and self.data.truncation == "drop":  # spare a long row the rendering of every turn
                size = len(self.chat.prompt_ids(row.messages[: places[-1]], row.tools))
                if size > self.data.max_length:
                    return row.reject("too_long", f"more than {size} tokens")
            rendered = 0
            for place in places:
                prompt = self.chat.render(row.messages[:place], row.tools)
                rendered += len(prompt)
                if rendered > MOST_RENDERED:
                    size_text = f"{len(places)} answers, each after all that was said before"
                    return row.reject(*self._too_long(row, size_text))
                texts.append((prompt, self.chat.answer_text(row.messages[: place + 1], row.tools, prompt)))
        except Dropped as error:
            return row.reject("template_drops_text", str(error))
        except Refused as error:
            return row.reject("template_error", str(error))
        for message in row.messages[: places[-1]]:
            if not _stands(message, texts[-1][0]):
                return row.reject("template_drops_text", f"the {message['role']} message: {message['content']:.80}")
        return texts

    def _places(self, row: ConversationRow) -> list[int]:
        """The answers to be rendered; with the prompt supervised also those whose own loss must be left out."""
        if self.data.supervise == "last_turn":
            return row.answers[-1:]
        if self.data.supervise == "prompt_too":
            return [place for place, message in enumerate(row.messages) if message["role"] == "assistant"]
        return row.answers

    def _fault(self, row: ConversationRow) -> tuple[str, str] | None:
        """Why a row cannot be rendered as its texts mean it: the reason's code and the detail; or None."""
        answers, rest = answer_tokens.apart(row.messages)
        texts = list(strings([rest, row.tools or ()]))
        by_whom = [*((text, False) for text in texts), *((text, True) for text in answers)]
        for text, by_assistant in by_whom:
            if token := self.chat.control_token(text, by_assistant):
                return "control_token", token
        texts += answers
        size = sum(len(text.strip()) for text in texts)
        if token := self.chat.seam_token(texts):
            return "control_token", f"{token} where two texts meet"
        for key, word in NEEDS.items():
            held = row.tools if key == "tools" else any(key in message for message in row.messages)
            if held and word not in self.chat.text:
                return "template_drops_text", f"the chat template knows no {key}"
        if size > self._limit and self.data.truncation != "truncate":
            return self._too_long(row, f"{size} characters")  # encoding them would take minutes
        return None

    def _assemble(self, row: ConversationRow, turns: list[_Turn]) -> list[Sample] | Reject:
        """The samples of a row from its encoded turns."""
        for turn in turns:
            for text, spelled in zip(turn.texts, turn.spelled, strict=True):
                if text != spelled and _letters(text) != _letters(spelled):
                    return row.reject("tokenizer_loses_text", _difference(text, spelled))
        respelled = []
        for turn, place in zip(turns, self._places(row), strict=True):
            turn.place = place
            answer, spelled = turn.texts[1], turn.spelled[1]
            if answer != spelled:
                respelled.append((place, answer, spelled))
        samples = [self._sample(row, run, before) for run, before in _runs(turns)]
        samples[0].respelled = tuple(respelled)
        for sample in samples:
            size = len(sample.input_ids)
            if size > self.data.max_length and not self._truncate(sample, size - self.data.max_length):
                return row.reject(*self._too_long(row, f"{size} tokens"))
        return samples

    def _sample(self, row: ConversationRow, turns: list[_Turn], before: list[int]) -> Sample:
        """Turns of which each, prompt and answer, is the beginning of the next prompt, as one sample.

        Args:
            before: ids of the row's sample before this one.
        """
        ids = turns[-1].whole
        labels = [IGNORE] * len(ids)
        for turn in turns:
            labels[len(turn.prompt) : len(turn.whole)] = turn.answer
        if self.data.supervise == "prompt_too":  # what an earlier sample of the row has trained is not trained again
            known = max(1, _common_length(ids, before))  # nothing predicts a text's first token
            labels[known:] = ids[known:]
        for turn in turns:
            if turn.place in row.untrained:
                labels[len(turn.prompt) : len(turn.whole)] = [IGNORE] * len(turn.answer)
        return Sample(ids, labels, row, len(turns[-1].answer), turns[-1].place + 1)

    def _too_long(self, row: ConversationRow, size: str) -> tuple[str, str]:
        if self.data.truncation == "error":
            raise UserError(
                f"{row.name} has {size}, --data.max_length is {self.data.max_length} tokens, "
                "and --data.truncation is error"
            )
        return "too_long", size

    def _truncate(self, sample: Sample, excess: int) -> bool:
        """Cut the oldest tokens, but for the one that begins every text; False where the last answer would suffer."""
        start = int(sample.input_ids[0] == self.chat.tokenizer.bos_token_id)
        if self.data.truncation != "truncate" or start + excess >= len(sample.input_ids) - sample.answer:
            return False
        del sample.input_ids[start : start + excess]
        inside = sample.labels[start + excess - 1] != IGNORE
        del sample.labels[start : start + excess]
        if inside and self.data.supervise != "prompt_too":  # the rest of an answer that lost its beginning
            place = start
            while sample.labels[place] != IGNORE:
                sample.labels[place] = IGNORE
                place += 1
        sample.labels[0] = IGNORE  # nothing predicts it now
        sample.cut = excess
        return True


def _stands(message: Message, prompt: str) -> bool:
    """Whether a prompt holds a message's text. Templates trim it, and write tools' answers as JSON."""
    text = message["content"].strip()
    if message["role"] == "tool":
        as_json = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        return any(form in prompt for form in (text, *as_json))
    return message["role"] == "assistant" or text in prompt


def _letters(text: str) -> str:
    """A text without what tokenizers may spell in another way: spaces and compatible forms."""
    return "".join(unicodedata.normalize("NFKC", text).replace("▁", " ").split())


def _difference(text: str, spelled: str) -> str:
    """The first place at which two texts differ."""
    place = _common_length(text, spelled)
    return f"{text[place : place + 20]!r} becomes {spelled[place : place + 20]!r}"


def _common_length(first: Sequence[object], second: Sequence[object]) -> int:
    """How many items two sequences begin with alike."""
    for place, (item, other) in enumerate(zip(first, second, strict=False)):
        if item != other:
            return place
    return min(len(first), len(second))


def _runs(turns: list[_Turn]) -> Iterator[tuple[list[_Turn], list[int]]]:
    """Runs of turns whose prompts go on where the turn before ended, and the ids of the run before.

    Where a template rewrites earlier turns (it drops their thoughts, say), one run ends and
    another begins: each answer is trained after exactly the prompt that a server will see.
    """
    run: list[_Turn] = []
    before: list[int] = []
    for turn in turns:
        if run and turn.prompt[: len(run[-1].whole)] != run[-1].whole:
            yield run, before
            before, run = run[-1].whole, []
        run.append(turn)
    if run:
        yield run, before
