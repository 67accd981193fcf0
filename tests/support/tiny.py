"""Smallest real things: a random model with its own tokenizer, saved as a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same with tools, as Qwen's and Hermes' models write them.
CHATML_TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or () %}{{ '\n' if message['content'] or not loop.first }}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}{{ call.function.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHARED_QWEN3 = Path(__file__).resolve().parents[3] / "shared" / "tokenizers" / "qwen3"


def tokenizer() -> Any:
    """A byte-level BPE of 500 tokens, with ChatML's control tokens; pads with its end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    corpus = ["Turn the order into one line of JSON.", '{"item": "green tea", "quantity": 3}', "你是谁？本宫沈清漪。"]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    )


def model(
    folder: Path, *, kind: str = "llama", tied: bool = True, seed: int = 0, shard: str = "5GB", **changes: Any
) -> Path:
    """Save a random two-layer model with its tokenizer; returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    made = tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    } | changes  # fmt: skip
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.bfloat16)
    network.save_pretrained(folder, max_shard_size=shard)
    made.save_pretrained(folder)
    return folder


def peft_adapter(folder: Path, base: Path, more: int = 0, noise: float = 0.1, **changes: Any) -> Any:
    """An adapter as PEFT alone saves it, every trainable tensor moved; returns the trained model, in float32.

    Args:
        more: tokens by which the base's embedding grows before.
        noise: how far the tensors move.
        changes: to LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from lockstep.model import networks

    network = networks.load(base, torch.float32, "cpu")
    if more:
        network.resize_token_embeddings(network.config.vocab_size + more, mean_resizing=False)
        network.get_input_embeddings().weight.data[-more:] += 0.3
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes
    made = get_peft_model(network, LoraConfig(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.data = weight.float() + noise * torch.randn(weight.shape)
    made.save_pretrained(folder)
    return made.eval()


def merged(base: Path, adapter: Path, out: Path, dequantizer: Any = None) -> Path:
    """The merge of an adapter's folder into a base, read back as it was written; returns `out`."""
    from lockstep.merging import merge, merged_folder, safetensors_stream
    from lockstep.model import adapter_files

    sums = merge.write_weights(base, out, adapter_files.read(adapter), dequantizer)
    safetensors_stream.verify(out, sums)
    merged_folder.write_rest(base, adapter, out)
    return out


def qwen3(folder: Path, head_dim: int = 16) -> Path:
    """A random Qwen3 with the real Qwen3 tokenizer and template, where those are at hand.

    Args:
        head_dim: vLLM's CPU attention has no kernel for 16.
    """
    import shutil

    model(folder, kind="qwen3", vocab_size=151936, hidden_size=32, head_dim=head_dim, eos_token_id=151645, bos_token_id=151643,
          pad_token_id=151643)  # fmt: skip
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink()
    for file in SHARED_QWEN3.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def rows(file: Path, count: int, start: int = 0) -> Path:
    """Alpaca rows, half of them Chinese."""
    made = []
    for number in range(start, start + count):
        if number % 2:
            made.append(
                {"instruction": "你是谁？", "input": f"第{number}次", "output": f"本宫沈清漪，第{number}次答。"}
            )
        else:
            made.append(
                {
                    "instruction": "Turn the order into JSON.",
                    "input": f"{number} tea",
                    "output": f'{{"quantity": {number}}}',
                }
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return file
