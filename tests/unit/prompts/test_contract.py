import hashlib

import pytest
from support import tiny

from lockstep.errors import UserError
from lockstep.prompts import contract, golden_tools, template_source
from lockstep.prompts.template import Template
from lockstep.settings.schema import Data

CHAT = Template(tiny.tokenizer(), tiny.CHATML)


def test_there_are_enough_golden_conversations_of_every_kind() -> None:
    conversations = dict(contract.golden())
    assert len(conversations) >= 40
    assert all(messages[-1]["role"] == "user" for messages in conversations.values())
    contents = [message["content"] for messages in conversations.values() for message in messages]
    everything = "\n".join(contents)
    for part in ("你是谁", "🙂", "👩‍👩", "\u200b", "\t", "\r\n", "e\u0301", "<|im_end>", "{{ x }}", "\u2028", "𠮷"):
        assert part in everything
    assert "" in contents and max(map(len, contents)) > 2000
    assert any(content.endswith("   ") for content in contents) and any(
        content.startswith("\n") for content in contents
    )
    assert sum(len(messages) > 2 for messages in conversations.values()) >= 5


@pytest.mark.parametrize("text", [tiny.CHATML, template_source.BUILT_IN["instruction_zh"].read_text(encoding="utf-8")])
def test_the_contract_holds_what_a_server_must_give(text: str) -> None:
    chat = Template(tiny.tokenizer(), text)
    agreed = contract.build(chat, Data(system_prompt="你是甲。", thinking=None))
    assert agreed["template_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert agreed["special_ids"] == {"bos": None, "eos": 2, "pad": 2, "end_of_turn": 2}
    assert agreed["stop_ids"] == [2] and agreed["system_prompt"] == "你是甲。" and agreed["thinking"] is None
    assert agreed["date"] is None
    assert len(agreed["conversations"]) >= 40 and agreed["left_out"] == {}
    plain = tiny.tokenizer()
    plain.chat_template = text
    for conversation in agreed["conversations"]:
        rendered = plain.apply_chat_template(conversation["messages"], add_generation_prompt=True, return_dict=False)
        assert conversation["prompt_ids"] == rendered
    assert len({tuple(conversation["prompt_ids"]) for conversation in agreed["conversations"]}) == len(
        agreed["conversations"]
    )


def test_conversations_that_do_not_fit_are_named_and_too_few_are_refused() -> None:
    strict = Template(tiny.tokenizer(), "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.CHATML)  # fmt: skip
    agreed = contract.build(strict, Data())
    assert len(agreed["conversations"]) >= contract.FEWEST
    assert "no system" in agreed["left_out"]["empty system"]
    picky = Template(tiny.tokenizer(), "{% if messages[0].content | length > 20 %}{{ raise_exception('long') }}{% endif %}" + tiny.CHATML)  # fmt: skip
    with pytest.raises(UserError, match="takes only"):
        contract.build(picky, Data())


def test_a_template_with_tools_has_conversations_with_calls_and_results() -> None:
    text = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{% for call in m.tool_calls or () %}{{ call.function.arguments.city }}{% endfor %}{% endfor %}"
    )
    agreed = contract.build(Template(tiny.tokenizer(), text + tiny.CHATML), Data())
    with_tools = {one["name"]: one for one in agreed["conversations"] if "tools" in one}
    assert len(with_tools) == 4 and with_tools["a tool"]["tools"] == [golden_tools.TOOL]
    rendered = {name: CHAT.tokenizer.decode(one["prompt_ids"]) for name, one in with_tools.items()}
    assert "查询天气" in rendered["a tool"] and '北京 "东城" & <西城>' in rendered["a call and its result"]
    assert "Paris" in rendered["two calls beside a text, answered"]
