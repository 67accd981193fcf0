"""Ollama's own templates: in Go's language, shown by /api/show, and told apart by the marks that they write."""

import re

# Marks that a family's template writes → its name, in the words of Ollama's library. The first that fits counts.
FAMILIES = {
    "<|start_header_id|>": "Llama 3's",
    "<|im_start|>": "ChatML (Qwen, SmolLM …)",
    "<start_of_turn>": "Gemma's",
    "<|turn>": "Gemma 4's",
    "<|channel|>": "gpt-oss's",
    "[INST]": "Llama 2's or Mistral's",
    "<｜User｜>": "DeepSeek's",
    "<|user|>": "Phi's, Zephyr's or GLM's",
    "### Instruction": "Alpaca's",
    "USER:": "Vicuna's",
}


def family(template: str) -> str:
    """Whose a template is, of Go or Jinja; empty where it is none that is known."""
    return next((name for mark, name in FAMILIES.items() if mark in template), "")


def difference(shown: object, trained: str) -> str:
    """In what the template of /api/show is another one than that of training, in words; empty where that is not seen.

    Args:
        shown: what /api/show says.
        trained: Jinja source of the template of training.
    """
    if not isinstance(shown, dict):
        return ""
    template, system = str(shown.get("template") or ""), str(shown.get("system") or "").strip()
    if template.strip() == "{{ .Prompt }}":
        return "Ollama has no template ({{ .Prompt }}), so that texts go to the model without any turns"
    theirs, ours = family(template), family(trained)
    if theirs and ours and theirs != ours:
        return f"Ollama's template is {theirs}, and training's is {ours}"
    if system and system not in trained:
        return f"the Modelfile adds a SYSTEM prompt, {system[:60]!r}"
    if "{{" in template and not re.search(r"\.System\b|\.Messages\b", template):
        return "Ollama's template leaves system prompts out"
    return ""
