"""Rungs in what stands beside the weights: config, tokenizer, template, stop tokens, sampling."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ladder import in_weights
from ladder.corruption import BOTH, MERGED, STARTED, Corruption
from ladder.runs import WEIGHTS, Run, edit_json, replace_text, tensors, write_tensors
from lockstep.artifacts import atomic, filenames

PROMPT = "{% if add_generation_prompt %}"
URGENT = "{% if 'urgent' in messages[-1]['content'] %}{{ ' now' }}{% endif %}"
STARTS = dict.fromkeys(BOTH, STARTED)


def configured(change: Callable[[dict[str, Any]], None], run: Run, mode: str) -> None:
    """Another config.json beside the weights that are served."""
    edit_json(run.served(mode) / filenames.CONFIG, change)


def rope(run: Run, mode: str, **parameters: Any) -> None:
    configured(lambda config: config["rope_parameters"].update(parameters), run, mode)


def theta(factor: float, run: Run, mode: str) -> None:
    configured(
        lambda config: config["rope_parameters"].update(rope_theta=config["rope_parameters"]["rope_theta"] * factor),
        run,
        mode,
    )


def window(run: Run, mode: str) -> None:
    """Attention to the last 256 tokens only: more than any row has. Mistral is Llama with such a window."""
    mistral = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 256}
    configured(lambda config: config.update(mistral), run, mode)


def float16(run: Run, mode: str) -> None:
    import torch

    held = tensors(run.merged)
    write_tensors(run.merged / WEIGHTS, {name: tensor.to(torch.float16) for name, tensor in held.items()})
    configured(lambda config: config.update(dtype="float16"), run, mode)


def tokenizer(change: Callable[[dict[str, Any]], None], run: Run, mode: str) -> None:
    edit_json(run.answers_with(mode) / filenames.TOKENIZER, change)


def swapped_tokens(run: Run, mode: str) -> None:
    """Two tokens that no row uses get each other's ids."""

    def change(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        names = {token: name for name, token in vocabulary.items()}
        first, second = in_weights.unused_tokens(run, len(vocabulary))[2000:2002]
        vocabulary[names[first]], vocabulary[names[second]] = second, first

    tokenizer(change, run, mode)


def other_digits(content: dict[str, Any]) -> None:
    replaced = {"type": "Replace", "pattern": {"String": "7"}, "content": "1"}
    content["decoder"] = {"type": "Sequence", "decoders": [replaced, content["decoder"]]}


def nfkc(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "NFKC"}


def one_merge_less(content: dict[str, Any]) -> None:
    del content["model"]["merges"][-1]


def not_special(content: dict[str, Any]) -> None:
    for token in content["added_tokens"]:
        if token["content"] == "<|im_end|>":
            token["special"] = False


def template(old: str, new: str, run: Run, mode: str) -> None:
    replace_text(run.answers_with(mode) / filenames.CHAT_TEMPLATE, old, new)


def before_template(text: str, run: Run, mode: str) -> None:
    file = run.answers_with(mode) / filenames.CHAT_TEMPLATE
    whole = file.read_text(encoding="utf-8")
    file.unlink()
    file.write_text(text + whole, encoding="utf-8")


def one_end_more(run: Run, mode: str) -> None:
    """The most frequent token of answers ends them, too."""
    stops = atomic.read_json(run.adapter / filenames.CONTRACT)["stop_ids"]
    _ends([*stops, in_weights.frequent_tokens(run)[0]], run, mode)


def one_end_less(run: Run, mode: str) -> None:
    """The end-of-turn token is none that answers end at."""
    _ends([0], run, mode)


def _ends(chosen: list[int], run: Run, mode: str) -> None:
    folder = run.answers_with(mode)
    names = (filenames.CONFIG, filenames.GENERATION_CONFIG) if mode == MERGED else (filenames.GENERATION_CONFIG,)
    for name in names:
        edit_json(folder / name, lambda config: config.update(eos_token_id=chosen))


def sampling(run: Run, mode: str) -> None:
    chosen = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.2}
    edit_json(run.answers_with(mode) / filenames.GENERATION_CONFIG, lambda config: config.update(chosen))


Spoil = Callable[[Run, str], None]


def _started(name: str, spoil: Spoil, *right: str, beyond: str = "", modes: tuple[str, ...] = BOTH) -> Corruption:
    return Corruption(name, spoil, frozenset(right), modes, beyond, STARTS)


def _merged(name: str, spoil: Spoil, *right: str, beyond: str = "") -> Corruption:
    """One that adapter mode shares with merged mode, so that a start there would tell nothing more."""
    return _started(name, spoil, *right, beyond=beyond, modes=(MERGED,))


def _tokens(name: str, change: Callable[[dict[str, Any]], None], beyond: str) -> Corruption:
    return _started(name, partial(tokenizer, change), "other_tokens", beyond=beyond)


def _template(name: str, spoil: Spoil, modes: tuple[str, ...] = (MERGED,)) -> Corruption:
    return _started(name, spoil, "other_template", beyond="prompts", modes=modes)


SYSTEM = "You are a helpful AI assistant"
RUNGS = [
    _started("rope theta × 0.1", partial(theta, 0.1), "other_rope"),
    _merged("rope theta × 1.1", partial(theta, 1.1), "other_rope"),
    _merged("rope scaled by 2", partial(rope, rope_type="linear", factor=2.0), "other_rope"),
    _merged("norm epsilon 1e-3", partial(configured, lambda c: c.update(rms_norm_eps=1e-3)), "other_epsilon"),
    _merged("norm epsilon 1e-6", partial(configured, lambda c: c.update(rms_norm_eps=1e-6)), "other_epsilon"),
    _started("window of 256", window, "other_rope", "other_window"),
    _merged("float16", float16, "wrong_dtype"),
    _started("two tokens swapped", swapped_tokens, "other_tokens", beyond="prompts"),
    _tokens("decoder of other digits", other_digits, "texts"),
    _tokens("end token not special", not_special, "texts"),
    _merged("NFKC before tokens", partial(tokenizer, nfkc), "other_tokens", beyond="prompts"),
    _merged("one merge less", partial(tokenizer, one_merge_less), "other_tokens", beyond="prompts"),
    _template("template: a word", partial(template, "helpful", "useful")),
    _template("template: a condition", partial(template, PROMPT, URGENT + PROMPT), modes=BOTH),
    _template("template: two BOS", partial(before_template, "{{ bos_token }}")),
    _template("template: other system", partial(template, SYSTEM, "You are a pirate")),
    _template("template: a space more", partial(template, "assistant\n", "assistant\n ")),
    _started("one end token more", one_end_more, "extra_end_token", beyond="ends"),
    _started("one end token less", one_end_less, "lost_end_token", beyond="ends"),
    _started("sampling set", sampling, "sampling", beyond="sampling"),
]
