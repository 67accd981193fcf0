"""vLLM's flags about the kind of network that it serves, and what its class needs to be imported."""

import json
from collections.abc import Iterable
from pathlib import Path

from lockstep.artifacts import atomic, filenames
from lockstep.errors import UserError
from lockstep.model import vllm_table
from lockstep.prompts import answer_tokens, template
from lockstep.serving import tool_parsers

# What vLLM's classes of wrappers import; the CPU set leaves it out, as the general index has CUDA builds only.
TORCHVISION = "torchvision==0.28.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vLLM renders chats of this model_type in code of its own (harmony), and not by the template that training used.
HARMONY = "gpt_oss"
THOUGHT_PARSER = Path(__file__).with_name("thought_parser.py")
REASONING, TOOLS = "--reasoning-parser", "--tool-call-parser"


def arguments(model: Path, cuda: bool) -> list[str]:
    """vLLM's flags for a model's folder, by its config.json.

    Args:
        cuda: whether the server computes on GPUs.
    """
    config = atomic.read_json(model / filenames.CONFIG)
    flags = ["--tokenizer-mode", "hf"]  # as in training, also where a model's folder has Mistral's own tokenizer
    served = vllm_table.of(config)
    if served.wrapper if served else "text_config" in config:
        flags += ["--language-model-only"]
    if served and served.plain_rotation and not cuda:
        flags += ["--compilation-config", json.dumps({"custom_ops": ["-rotary_embedding"]})]
    if config.get("model_type") == HARMONY:
        # Its class is found by the architecture; this parser leaves the answer as it is.
        flags += ["--hf-overrides", json.dumps({"model_type": f"{HARMONY}_by_template"})]
        flags += [REASONING, "deepseek_v3"]
    return flags


def of_thoughts(flags: list[str], answers_with: Path, given: Iterable[str]) -> list[str]:
    """vLLM's flags about thoughts in answers: none where the model writes none, or where one is chosen already.

    Args:
        flags: its others about the model.
        answers_with: folder of the tokenizer, template and contract that the server uses.
        given: names in serve.vllm_args.
    """
    theirs = {name.strip("-").replace("-", "_") for name in given}
    if REASONING in flags or "reasoning_parser" in theirs:
        return []
    text = (answers_with / filenames.CHAT_TEMPLATE).read_text(encoding="utf-8")
    if not answer_tokens.THOUGHT.search(text):  # which spares most models the loading
        return []
    chat = template.load(answers_with, text)
    if chat.thought_marks is None:
        return []
    prompt = chat.render([{"role": "user", "content": "?"}])
    if prompt.rstrip().endswith(chat.thought_marks[1]):  # closed at once: answers hold no thought
        return []
    contract = atomic.read_json(answers_with / filenames.CONTRACT)
    if chat.opens_a_thought(prompt) and contract.get("rows_with_thoughts") == 0:  # trained to answer there, and to end
        return []
    return [REASONING, "lockstep", "--reasoning-parser-plugin", str(THOUGHT_PARSER)]


def of_tools(flags: list[str], setting: str, answers_with: Path, notes: Path) -> list[str]:
    """vLLM's flags about calls of tools.

    Args:
        flags: its others, of which one may name a parser of thoughts.
        setting: serve.tool_call_parser.
        answers_with: folder of the tokenizer and template that the server uses.
        notes: folder in which the choice is kept.

    Raises:
        UserError: see `tool_parsers.choose`.
    """
    reasoning = flags[flags.index(REASONING) + 1] if REASONING in flags else None
    parser = tool_parsers.choose(setting, answers_with, reasoning, notes / tool_parsers.NOTE)
    return ["--enable-auto-tool-choice", TOOLS, parser] if parser else []


def check(model: Path, cuda: bool) -> None:
    """Raise UserError where vLLM's class for the model cannot be imported or run: a minute before vLLM would say so.

    Args:
        cuda: whether the server computes on GPUs, so that packages are those of the CUDA set.
    """
    config = atomic.read_json(model / filenames.CONFIG)
    served = vllm_table.of(config)
    architecture = vllm_table.architecture_of(config)
    if served and served.gpu_only and not cuda and (vllm_table.has_experts(config) or "experts" not in served.gpu_only):
        raise UserError(
            f"vLLM computes {architecture} on GPUs only ({served.gpu_only}): serve outputs/<run>/merged/ on one"
        )
    if served is None or not served.torchvision:
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        package = TORCHVISION if cuda else f"{TORCHVISION}+cpu --index-url {CPU_INDEX}"
        raise UserError(
            f"vLLM's class for {architecture} imports torchvision, and that fails here ({error}): run "
            f"`.venv/bin/python -m pip install --no-deps {package}`"
        ) from error
