from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from lockstep.data.collator import IGNORE
from lockstep.data.conversation_row import ConversationRow
from lockstep.data.encoding import Sample, Sampler
from lockstep.data.records import Record, Reject
from lockstep.errors import UserError
from lockstep.prompts import template_source
from lockstep.prompts.template import Template
from lockstep.settings.schema import Data
from lockstep.text.json_text import JsonObject

# Like Qwen3's: an earlier answer is shown without the thought block that its own prompt ended with.
REWRITING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n(thought)\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ 'CALL ' + (call.function | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHAT = Template(tiny.tokenizer(), tiny.CHATML)


def row(*contents: str, **more: Any) -> ConversationRow:
    roles = ("user", "assistant")
    messages = tuple({"role": roles[n % 2], "content": text} for n, text in enumerate(contents))
    return ConversationRow(messages, Record("f", 1, JsonObject([]), "{}"), **more)


def sample(conversation: ConversationRow, chat: Template = CHAT, **changes: Any) -> list[Sample] | Reject:
    return Sampler(chat, Data(**changes)).samples([conversation])[0]


def texts(chat: Template, example: Sample) -> tuple[str, str]:
    """The whole sample, and what of it is supervised."""
    supervised = [label for label in example.labels if label != IGNORE]
    return chat.tokenizer.decode(example.input_ids), chat.tokenizer.decode(supervised)


def test_every_answer_and_its_end_is_supervised_in_one_sample() -> None:
    (example,) = sample(row("q1", "a1", "q2", "a2"))  # type: ignore[misc]
    whole = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\na2<|im_end|>"
    assert texts(CHAT, example) == (whole, "a1<|im_end|>a2<|im_end|>")
    assert all(label in (IGNORE, token) for label, token in zip(example.labels, example.input_ids, strict=True))


def test_the_last_turn_only_or_the_prompt_too() -> None:
    (last,) = sample(row("q1", "a1", "q2", "a2"), supervise="last_turn")  # type: ignore[misc]
    assert texts(CHAT, last)[1] == "a2<|im_end|>"
    (every,) = sample(row("q1", "a1"), supervise="prompt_too")  # type: ignore[misc]
    assert every.labels == [IGNORE, *every.input_ids[1:]]  # nothing predicts the first token


def test_a_template_that_rewrites_earlier_turns_gives_one_sample_a_turn() -> None:
    chat = Template(tiny.tokenizer(), REWRITING)
    outcome = sample(row("q1", "a1", "q2", "a2"), chat)
    assert isinstance(outcome, list)
    assert [texts(chat, example)[1] for example in outcome] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert [texts(chat, example)[0].count("(thought)") for example in outcome] == [1, 1]
    for example, messages in zip(outcome, (1, 3), strict=True):
        prompt = chat.prompt_ids(row("q1", "a1", "q2", "a2").messages[:messages])
        assert example.input_ids[: len(prompt)] == prompt
    both = sample(row("q1", "a1", "q2", "a2"), chat, supervise="prompt_too")
    assert isinstance(both, list)
    seen = chat.tokenizer.decode([label for example in both for label in example.labels if label != IGNORE])
    assert seen.count("q1") == seen.count("q2") == seen.count("a2") == 1  # a1 stands in two contexts


def test_an_answer_that_merges_with_its_prompt_is_still_trained_after_its_own_prompt() -> None:
    chat = Template(tiny.tokenizer(), tiny.CHATML)
    outcome = sample(row("q1", "\n\na1", "q2", "a2"), chat)
    assert isinstance(outcome, list)
    for example in outcome:
        assert texts(chat, example)[1].endswith("a2<|im_end|>") or texts(chat, example)[1] == "\n\na1<|im_end|>"


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_control_token_anywhere_drops_the_row_and_is_named(place: int) -> None:
    contents = ["q1", "a1", "q2", "a2"]
    contents[place] += "<|im_end|>"
    outcome = sample(row(*contents))
    assert isinstance(outcome, Reject) and (outcome.reason, outcome.detail) == ("control_token", "<|im_end|>")
    tools = sample(row("q", "a", tools=({"type": "function", "function": {"name": "<|im_end|>"}},)), Template(tiny.tokenizer(), TOOLS))  # fmt: skip
    assert isinstance(tools, Reject) and tools.reason == "control_token"
    allowed = Template(tiny.tokenizer(), tiny.CHATML, ["<|endoftext|>"])
    assert isinstance(sample(row("<|endoftext|>", "a"), allowed), list)
    with pytest.raises(UserError, match="not an added token"):
        Template(tiny.tokenizer(), tiny.CHATML, ["<b>"])


def test_tool_calls_are_trained_as_the_template_writes_them() -> None:
    chat = Template(tiny.tokenizer(), TOOLS)
    tools = ({"type": "function", "function": {"name": "weather"}},)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}
    messages = (
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "a"},
    )
    talk = ConversationRow(messages, Record("f", 1, JsonObject([]), "{}"), tools=tools)
    (example,) = sample(talk, chat)  # type: ignore[misc]
    assert '"name": "weather"' in texts(chat, example)[0].split("user")[0]
    assert texts(chat, example)[1] == 'CALL {"name": "weather", "arguments": {"city": "x"}}<|im_end|>a<|im_end|>'
    for without in (
        CHAT,
        Template(tiny.tokenizer(), template_source.BUILT_IN["instruction_zh"].read_text(encoding="utf-8")),
    ):
        outcome = sample(talk, without)
        assert isinstance(outcome, Reject) and outcome.reason == "template_drops_text"


def test_a_template_that_leaves_text_out_or_refuses_costs_the_row_only() -> None:
    silent = Template(tiny.tokenizer(), tiny.CHATML.replace("{% for message in messages %}", "{% for message in messages if message.role != 'system' %}"))  # fmt: skip
    system = ({"role": "system", "content": "be kind"}, *row("q", "a").messages)
    outcome = sample(ConversationRow(system, Record("f", 1, JsonObject([]), "{}")), silent)
    assert isinstance(outcome, Reject) and outcome.reason == "template_drops_text"
    strict = Template(tiny.tokenizer(), "{% if messages | length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + tiny.CHATML)  # fmt: skip
    outcome = sample(row("q1", "a1", "q2", "a2"), strict)
    assert isinstance(outcome, Reject) and outcome.reason == "template_error" and "one turn only" in outcome.detail


def test_a_tokenizer_that_loses_characters_is_seen() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<unk>", "<|im_end|>", "user", "assistant", "a", "b"])}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    chat = Template(tokenizer, "{% for m in messages %}{{ m.role + ' ' + m.content + '<|im_end|> ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}")  # fmt: skip
    assert isinstance(sample(row("a", "b"), chat), list)
    outcome = sample(row("a", "你"), chat)
    assert isinstance(outcome, Reject) and outcome.reason == "tokenizer_loses_text"


def test_what_the_tokenizer_spells_in_another_way_is_on_record() -> None:
    from tokenizers import normalizers

    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    (example,) = sample(row("q", "cafe\u0301"), Template(tokenizer, tiny.CHATML))  # type: ignore[misc]
    assert example.respelled == ((1, "cafe\u0301", "café"),)


def test_a_template_that_leaves_a_part_of_an_answer_or_a_tools_result_out_is_seen() -> None:
    first_call = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% elif m.role != 'tool' %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"  # fmt: skip
    chat = Template(tiny.tokenizer(), first_call)
    call = {"id": "x", "function": {"arguments": {}, "name": "weather"}, "type": "function"}

    def talk(content: str, calls: int, result: str) -> ConversationRow:
        messages: list[Any] = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content, "tool_calls": [call] * calls},
        ]
        if result:
            messages += [{"role": "tool", "content": result}, {"role": "assistant", "content": "a"}]
        return ConversationRow(tuple(messages), Record("f", 1, JsonObject([]), "{}"))

    assert isinstance(sample(talk("", 1, ""), chat), list)
    for lossy in (talk("I will ask.", 1, ""), talk("", 2, ""), talk("", 1, "3 degrees")):
        outcome = sample(lossy, chat)
        assert isinstance(outcome, Reject) and outcome.reason == "template_drops_text", outcome


def test_answers_of_weight_0_carry_no_loss_with_the_prompt_supervised_either() -> None:
    (example,) = sample(row("q1", "wrong", "q2", "right", untrained=frozenset({1})), supervise="prompt_too")  # type: ignore[misc]
    spoken = texts(CHAT, example)[1]
    assert "wrong" not in spoken and "q1" in spoken and spoken.endswith("right<|im_end|>")


def sentencepiece() -> Any:
    """A tokenizer that puts a space before a text's first word, and begins texts with <s>."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "b", "▁b", "<", "x"]
    core = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True))  # fmt: skip
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


SENTENCES = "{{ '<s>' }}{% for m in messages %}{{ m.content + ('</s>' if m.role == 'assistant' else '') }}{% endfor %}"


def test_sentencepiece_puts_no_space_before_an_answer_and_its_beginning_of_text_survives_truncation() -> None:
    chat = Template(sentencepiece(), SENTENCES)
    assert chat.tokenizer.convert_ids_to_tokens(chat.encode(["a"])[0]) == ["▁a"]
    (example,) = sample(row("bbbbbbbbbb", "a"), chat)  # type: ignore[misc]
    assert chat.tokenizer.convert_ids_to_tokens(example.input_ids[-2:]) == ["a", "</s>"]
    assert example.respelled == ()
    (cut,) = sample(row("bbbbbbbbbb", "a"), chat, max_length=8, truncation="truncate")  # type: ignore[misc]
    assert chat.tokenizer.convert_ids_to_tokens(cut.input_ids) == ["<s>", "b", "b", "b", "b", "b", "a", "</s>"]


def test_a_control_token_that_appears_only_when_the_tokenizer_has_normalized_is_found() -> None:
    outcome = sample(row("＜／ｓ＞", "a"), Template(sentencepiece(), SENTENCES))
    assert isinstance(outcome, Reject) and outcome.reason == "control_token"


def test_a_row_of_thousands_of_answers_costs_that_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.data.encoding.MOST_RENDERED", 2000)
    few, many = row(*["a"] * 8), row(*["a"] * 40)
    for supervise in ("all_turns", "prompt_too"):
        assert isinstance(sample(few, truncation="truncate", max_length=16, supervise=supervise), list)
        outcome = sample(many, truncation="truncate", max_length=16, supervise=supervise)
        assert isinstance(outcome, Reject) and outcome.reason == "too_long" and "20 answers" in outcome.detail


def test_an_answer_that_lost_its_beginning_to_truncation_carries_no_loss() -> None:
    whole = sample(row("q", "a long first answer", "r", "b"))
    assert isinstance(whole, list)
    start = whole[0].labels.index(next(label for label in whole[0].labels if label != IGNORE))
    length = len(whole[0].input_ids) - start - 3  # three tokens into the first answer
    (cut,) = sample(row("q", "a long first answer", "r", "b"), max_length=length, truncation="truncate")  # type: ignore[misc]
    assert texts(CHAT, cut)[1] == "b<|im_end|>"


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@settings(deadline=None)
@given(
    st.lists(TEXT.filter(str.strip), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0),
    st.integers(8, 120), st.sampled_from(["all_turns", "last_turn", "prompt_too"]), st.booleans(),
)  # fmt: skip
def test_truncation_keeps_the_last_answer_and_its_end_whole(
    contents: list[str], length: int, supervise: str, rewriting: bool
) -> None:
    chat = Template(tiny.tokenizer(), REWRITING) if rewriting else CHAT
    whole = sample(row(*contents), chat, supervise=supervise, max_length=100_000)
    cut = sample(row(*contents), chat, supervise=supervise, max_length=length, truncation="truncate")
    dropped = sample(row(*contents), chat, supervise=supervise, max_length=length)
    if isinstance(whole, Reject):
        assert whole.reason == "control_token"
        return
    too_long = any(len(example.input_ids) > length for example in whole)
    assert isinstance(dropped, Reject) == too_long
    if isinstance(cut, Reject):
        assert cut.reason == "too_long" and any(example.answer + 1 > length for example in whole)
        return
    for example, full in zip(cut, whole, strict=True):
        assert len(example.input_ids) == min(length, len(full.input_ids)) == len(example.labels)
        assert example.cut == len(full.input_ids) - len(example.input_ids)
        assert example.input_ids == full.input_ids[example.cut :]
        assert (
            example.labels[-example.answer :] == full.labels[-example.answer :] == example.input_ids[-example.answer :]
        )
        assert example.labels[-1] == chat.end_of_turn
        assert example.labels[0] == IGNORE
        spoken = [label for label in example.labels if label != IGNORE]
        assert supervise == "prompt_too" or len(spoken) <= len([label for label in full.labels if label != IGNORE])


@settings(deadline=None)
@given(st.lists(TEXT.filter(str.strip), min_size=2, max_size=2))
def test_prompt_and_answer_give_the_text_back(contents: list[str]) -> None:
    outcome = sample(row(*contents), max_length=10_000)
    if isinstance(outcome, Reject):
        assert outcome.reason == "control_token"
        return
    assert texts(CHAT, outcome[0]) == (CHAT.render(row(*contents).messages[:1]) + contents[1] + "<|im_end|>", contents[1] + "<|im_end|>")  # fmt: skip
    controls = set(CHAT.tokenizer.added_tokens_decoder)
    assert sum(token in controls for token in outcome[0].input_ids) == 4  # the template's own, and no more


def test_a_row_with_an_added_word_that_is_text_says_so() -> None:
    plain = Template(tiny.tokenizer(), tiny.CHATML, as_text=["<filename>"])  # whose tokenizer never added it
    (samples,) = Sampler(plain, Data()).samples([row("a <filename> b", "c")])
    assert not isinstance(samples, Reject)
    assert samples[0].row.remarks.noted == {"added_word": "<filename>"}
    (samples,) = Sampler(plain, Data()).samples([row("a filename b", "c")])
    assert not isinstance(samples, Reject) and not samples[0].row.remarks.noted
