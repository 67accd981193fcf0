"""llama.cpp's own server, by a package that carries it, on GGUF files written here: where requirements-llamacpp.lock is
installed in a virtual environment of its own, named by LLAMACPP_PYTHON."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.programs import free_port

PYTHON = os.environ.get("LLAMACPP_PYTHON", "")
SERVER = """
import sys, time
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.use_jinja, params.endpoint_props = 1024, 1, False, True, True
for setting in sys.argv[3:]:
    name, value = setting.split("=", 1)
    setattr(params.sampling, name, type(getattr(params.sampling, name))(float(value)))
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
while True:
    time.sleep(1)
"""


def gguf(folder: Path, file: Path, *, dtype: str = "BF16", pre: str = "smollm", **changes: Any) -> Path:
    """A Llama-shaped folder as a GGUF file, as llama.cpp's converter writes it.

    Args:
        dtype: of the matrices: F32, BF16, F16 or Q8_0.
        pre: name of the pre-tokenizer.
        changes: keys of the file's head that differ, such as `add_bos_token` or `chat_template`.
    """
    import gguf as library
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    config = json.loads((folder / "config.json").read_text())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights = {name: tensor for part in folder.glob("*.safetensors") for name, tensor in load_file(part).items()}
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = library.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    _write_tokenizer(writer, folder, tokenizer, config["vocab_size"], pre, changes)
    quantization = library.GGMLQuantizationType[dtype]
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp's rotary embeddings pair neighbours
            count = heads if "q_proj" in name else key_heads
            tensor = tensor.view(count, 2, tensor.shape[0] // count // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        data = tensor.to(torch.float32).numpy().astype(np.float32)
        if data.ndim == 1 or quantization == library.GGMLQuantizationType.F32:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), data)
        else:
            quantized = library.quants.quantize(data, quantization)
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), quantized, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_tokenizer(writer: Any, folder: Path, tokenizer: Any, size: int, pre: str, changes: dict[str, Any]) -> None:
    import gguf as library

    tokens, kinds = [], []
    added = tokenizer.added_tokens_decoder
    for number in range(size):
        known = number < len(tokenizer)
        tokens.append(tokenizer.convert_ids_to_tokens(number) if known else f"[PAD{number}]")
        if not known:
            kinds.append(library.TokenType.UNUSED)
        elif number in added:
            special = added[number].special
            kinds.append(library.TokenType.CONTROL if special else library.TokenType.USER_DEFINED)
        else:
            kinds.append(library.TokenType.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(changes.get("bos_token_id", tokenizer.bos_token_id or 0))
    writer.add_eos_token_id(changes.get("eos_token_id", tokenizer.eos_token_id))
    writer.add_add_bos_token(changes.get("add_bos_token", False))
    writer.add_chat_template(changes.get("chat_template", tokenizer.chat_template))


@contextmanager
def served(file: Path, *sampling: str) -> Iterator[str]:
    """llama.cpp's server on a GGUF file; its address, without /v1.

    Args:
        sampling: defaults, such as `temp=0.2`.
    """
    port = free_port()
    server = subprocess.Popen(
        [PYTHON, "-c", SERVER, str(file), str(port), *sampling], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not _is_open(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < end, "llama.cpp's server did not start"
            time.sleep(0.3)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def _is_open(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
