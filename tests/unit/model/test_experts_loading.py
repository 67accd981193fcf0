"""Experts become 4-bit while they are loaded: what memory holds, at the end and on the way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import families, moe

from lockstep.model import experts, networks
from lockstep.settings.schema import Quantization

ROOT = Path(__file__).resolve().parents[3]
# Loads a model and says what that took, in bytes of this process that no file backs.
MEASURE = """
import gc, json, sys, threading, time
from pathlib import Path
import torch
from lockstep.model import experts, experts_loading, networks
from lockstep.settings.schema import Quantization

def held():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

networks.load(Path(sys.argv[1]), torch.bfloat16, "cpu", Quantization())  # whatever libraries take the first time
gc.collect()
start, peak, running = held(), [0], [True]

def watch():
    while running[0]:
        peak[0] = max(peak[0], held())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
network = networks.load(Path(sys.argv[2]), torch.bfloat16, "cpu", Quantization())
running[0] = False
thread.join()
gc.collect()
tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in
           (*network.parameters(), *network.buffers())}
for _, layer in networks.linear4bit(network):
    state = layer.weight.quant_state
    for t in (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code):
        tensors[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
largest = max(stack.shape.numel() * 2 for _, stack in experts.stacks(network))
print(json.dumps({"resident": held() - start, "peak": peak[0] - start, "storages": sum(tensors.values()),
                  "largest": largest}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")
def test_memory_is_what_the_account_says_and_the_peak_is_near_it(tmp_path: Path) -> None:
    from lockstep.model import checkpoint_names, weight_account

    small = moe.written("Qwen3-MoE", tmp_path / "small")
    folder = tmp_path / "large"
    values = families.ALL["Qwen3-MoE"].values | {
        "num_experts": 48, "moe_intermediate_size": 512, "hidden_size": 512, "num_hidden_layers": 6, "vocab_size": 512,
    }  # fmt: skip
    families.write(families.Family("large", "experts", "Qwen3MoeForCausalLM", values), folder)
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert on_disk > 400e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(folder)],
        env={"PYTHONPATH": str(ROOT / "scripts"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    network = networks.load(folder, torch.bfloat16, "cpu", Quantization())
    account = weight_account.of_network(network, checkpoint_names.of_folder(folder))
    assert account.bytes < 0.3 * on_disk
    assert figures["storages"] == pytest.approx(account.bytes, rel=0.02)
    assert figures["resident"] == pytest.approx(account.bytes, rel=0.1)
    # On the way there is one stack in 16 bits: its experts as the file has them, stacked, and joined.
    assert figures["peak"] < account.bytes * 1.1 + 3 * figures["largest"]


@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss", "Nemotron-H", "Llama 4 text", "Gemma 4 MoE"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_stack_is_in_4_bits_and_dequantizes_to_its_round_trip(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = moe.written(name, tmp_path)
    quantization = Quantization(bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=name == "gpt-oss")
    plain = dict(experts.stacks(networks.load(folder, dtype, "cpu")))
    network = networks.load(folder, dtype, "cpu", quantization)
    four_bit = dict(experts.stacks(network))
    assert plain.keys() == four_bit.keys() and plain
    assert list(plain) == list(four_bit), "another order than that of the class"
    for stack_name, stack in four_bit.items():
        assert stack.four_bit and stack.dtype == dtype and not stack.packed.requires_grad
        original = plain[stack_name].packed.detach()
        assert torch.equal(getattr(stack.module, stack.leaf), experts.round_trip(original, quantization))
        assert stack.held_bytes < 0.2 * original.numel() * 4
    assert network.is_loaded_in_4bit  # what PEFT and Trainer ask


def test_experts_are_computed_by_our_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lockstep.model import experts_forward

    passes = []
    own = experts_forward.forward

    def counted(*arguments: Any) -> Any:
        passes.append(arguments[0])
        return own(*arguments)

    network = networks.load(moe.written("Qwen3-MoE", tmp_path), torch.float32, "cpu", Quantization())
    monkeypatch.setattr(experts_forward, "forward", counted)
    with torch.no_grad():
        network(input_ids=torch.arange(10, 20)[None])
    assert passes == [stack.module for _, stack in experts.stacks(network)][::2]
