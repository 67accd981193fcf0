"""Small tokenizers of the kinds that models have, with added tokens that are words and such that are signs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

TRL_TEMPLATES = Path(find_spec("trl").origin).parent / "chat_templates"  # without TRL itself, which imports for long
CORPUS = ["Say <filename> and <b>bold</b>, then <table> of a city.", "你是谁？本宫沈清漪。", '{"item": "tea"}'] * 20
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content "
    "+ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>",
]  # fmt: skip
GEMMA = (
    "{% for message in messages %}{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) "
    "+ '\n' + message.content + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
WORDS = ["<filename>", "<b>", "</b>", "<table>"]  # added tokens that are words of a text


def _wrapped(core: Any, added: list[str], special: list[str], **roles: str) -> Any:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.add_tokens([AddedToken(token, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=core, **roles)


def llama3() -> Any:
    """Byte-level BPE that looks whole words up before it merges, words that it adds among them."""
    import json

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE(ignore_merges=True))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    content = json.loads(core.to_str())
    content["model"]["vocab"]["Zebra"] = len(content["model"]["vocab"])  # one that no merge leads to
    core = Tokenizer.from_str(json.dumps(content))
    return _wrapped(
        core, [*WORDS, "Zebra"], LLAMA3_TOKENS, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )  # fmt: skip


def gemma() -> Any:
    """BPE of characters with bytes to fall back on, whose merges were derived from all pieces, its HTML's too."""
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "<start_of_turn>", "<end_of_turn>", *WORDS, "<s>"]
    letters = sorted(
        set("".join(CORPUS)) | set("▁<>/|=.:,;?!()[]{}+-*'\"\n0123456789abcdefghijklmnopqrstuvwxyzABCDEFG")
    )
    merged = [("<", "b"), ("<b", ">"), ("<", "/"), ("</", "b"), ("</b", ">"), ("▁", "b"), ("t", "a")]
    pieces += [*letters, *("".join(pair) for pair in merged if "".join(pair) not in pieces)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    made = GemmaTokenizer(vocab=vocabulary, merges=merged)
    made.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    made.add_tokens([*WORDS, "<s>"])
    return made


def unigram() -> Any:
    """Pieces that are looked up whole, so that an added word can never be text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse()])
    letters = sorted(set("".join(CORPUS)) | set("Be brief. (a+b)*2🙂？"))
    trainer = trainers.UnigramTrainer(
        vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], initial_alphabet=letters, show_progress=False
    )
    core.train_from_iterator(CORPUS, trainer)
    return _wrapped(core, WORDS, ["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>", unk_token="<unk>")


MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
THINKING = (  # as Qwen3's: thoughts of the last turn alone, in the text or beside it; calls; what tools answered
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}"
    "{%- set text = message.content or '' %}{%- set thought = message.reasoning_content or '' %}"
    "{%- if '</think>' in text %}"
    "{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}"
    "{{- text }}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\n<tool_call>\n' + call.function.name + ' ' + (call.function.arguments | tojson) + '\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
OPENING = (  # as DeepSeek-R1's: each prompt opens a thought, and no answer is written with one
    "{%- for message in messages %}{%- set text = message.content %}"
    "{%- if '</think>' in text %}{%- set text = text.split('</think>')[-1] %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\n' + text + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
)

CUTTING = (  # as Gemma 4's and SmolLM3's: thoughts are cut out of the middle of answers, switches out of system prompts
    "{%- macro without_thoughts(text) -%}{%- set kept = namespace(text='') -%}"
    "{%- for part in text.split('</think>') -%}"
    "{%- set kept.text = kept.text + part.split('<think>')[0] -%}{%- endfor -%}{{ kept.text }}{%- endmacro -%}"
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.role == 'assistant' %}"
    "{%- if loop.last %}{{- '<think>\n' + (message.reasoning_content or '') + '</think>' }}{%- endif %}"
    "{{- without_thoughts(message.content) }}"
    "{%- elif message.role == 'system' %}{{- message.content.replace('/no_think', '').replace('/think', '') }}"
    "{%- else %}{{- message.content }}{%- endif %}"
    "{{- '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def thinking() -> Any:
    """Byte-level BPE with ChatML's tokens and the marks of thoughts, calls and tools' answers."""
    from support import tiny
    from transformers import PreTrainedTokenizerFast

    core = tiny.tokenizer().backend_tokenizer
    core.add_tokens([*MARKS, *WORDS])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
