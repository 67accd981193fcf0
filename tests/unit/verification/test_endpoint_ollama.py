"""Ollama's templates, as its /api/show has them."""

import pytest

from lockstep.verification import endpoint_ollama

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
RIGHT = "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"template": RIGHT}, ""),
        ({"template": "{{ .Prompt }}"}, "no template"),
        ({"template": "{{ if .System }}<|start_header_id|>{{ end }}{{ .Prompt }}"}, "Llama 3's"),
        ({"template": RIGHT, "system": "You are a pirate."}, "pirate"),
        ({"template": "<|im_start|>user\n{{ .Prompt }}<|im_end|>"}, "leaves system prompts out"),
        (None, ""),
    ],
)
def test_what_differs_is_said(shown: object, words: str) -> None:
    difference = endpoint_ollama.difference(shown, CHATML)
    assert words in difference and bool(words) == bool(difference)
