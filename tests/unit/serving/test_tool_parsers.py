"""Which parser reads a run's calls of tools; vLLM's own classes are tried in tests/e2e/test_tool_calls.py."""

from pathlib import Path

import pytest

from lockstep.errors import UserError
from lockstep.serving import model_flags, tool_parsers


@pytest.mark.parametrize(("setting", "template"), [("none", "{{ tools }}"), ("auto", "{{ messages }}")])
def test_without_tools_or_a_wish_vllm_is_not_even_asked(tmp_path: Path, setting: str, template: str) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    assert tool_parsers.choose(setting, tmp_path, None, tmp_path / "note.json") == ""
    assert model_flags.of_tools(["--tokenizer-mode", "hf"], setting, tmp_path, tmp_path) == []
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat_template.jinja"]


def test_a_parser_that_is_named_is_taken_and_a_wrong_name_is_guessed(tmp_path: Path) -> None:
    flags = model_flags.of_tools([], "hermes", tmp_path, tmp_path)
    assert flags == ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    with pytest.raises(UserError, match=r"hermas: no parser of vLLM's \(did you mean hermes\?\)"):
        model_flags.of_tools([], "hermas", tmp_path, tmp_path)


def test_the_choice_is_kept_with_what_it_was_made_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ tools }}")
    tried: list[str | None] = []
    monkeypatch.setattr(
        tool_parsers, "_first_that_reads", lambda folder, text, reasoning: tried.append(reasoning) or "hermes"
    )

    def choice(reasoning: str | None) -> str:
        return tool_parsers.choose("auto", tmp_path, reasoning, tmp_path / "serve/note.json")

    assert [choice(None), choice(None), choice("qwen3")] == ["hermes"] * 3 and tried == [None, "qwen3"]
    (tmp_path / "chat_template.jinja").write_text("{{ tools }} ")
    assert choice("qwen3") == "hermes" and len(tried) == 3
