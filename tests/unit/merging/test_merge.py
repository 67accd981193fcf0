import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file
from support import homes, rounding, tiny
from support.edits import edit_tensors

from lockstep import paths
from lockstep.artifacts import filenames, manifest
from lockstep.artifacts.stage import Stage
from lockstep.errors import UserError
from lockstep.merging import certificate, dequantizer, merge, merged_folder, safetensors_stream
from lockstep.model import adapter_delta, adapter_files, checkpoint_files, merge_plan, networks
from lockstep.settings.schema import Model, Quantization
from lockstep.settings.tree import Settings
from lockstep.training import reference

SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
IDS = torch.arange(10, 60)[None]


def trained(
    base: Path, quantization: Quantization | None = None, dtype: torch.dtype = torch.float32, **changes
) -> torch.nn.Module:
    """A base with an adapter whose every trainable tensor has moved, in float32."""
    from peft import LoraConfig, get_peft_model

    network = get_peft_model(networks.load(base, dtype, "cpu", quantization), LoraConfig(**SETTINGS | changes))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.data = weight.float() + 0.1 * torch.randn(weight.shape)
    return network.eval()


def save(network: torch.nn.Module, folder: Path) -> Path:
    """A network, or its adapter, in a folder as stage 02 leaves it."""
    from peft import PeftModel

    more = {"save_embedding_layers": False} if isinstance(network, PeftModel) else {}
    network.save_pretrained(folder, **more)
    tiny.tokenizer().save_pretrained(folder)
    (folder / "contract.json").write_text("{}\n")
    (folder / "base_tensors.json").write_text(json.dumps({"dequantized": {}, "dtype": "float32"}))
    return folder


def adapter(folder: Path, base: Path, **changes) -> Path:
    return save(trained(base, **changes), folder)


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(input_ids=IDS).logits


def picked(network: torch.nn.Module, names: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a network's tensors that have these names."""
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


def assert_same_function(merged: torch.nn.Module, network: torch.nn.Module) -> None:
    """The merged network's logits are as near to those of float64 as the unmerged network's own."""
    exact = logits(rounding.in_float64(network))
    rounding.assert_as_exact({"logits": logits(merged)}, {"logits": logits(network)}, {"logits": exact})


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


BASES = [("llama", True), ("llama", False), ("qwen2", True), ("qwen3", False), ("gemma", True)]
KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 6},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 3, "up_proj": 32},
    },
    "patterns from the root, rslora": {
        "use_rslora": True,
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 8, "proj": 1},
        "alpha_pattern": {"^self_attn.q_proj": 100, "o_proj": 2},
    },
    "head": {"modules_to_save": ["lm_head"]},
    "embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "norms and dora": {"use_dora": True, "modules_to_save": ["norm"]},  # PEFT takes every module that ends so
    "all biases": {"bias": "all", "target_modules": ["q_proj", "down_proj"]},
    "biases of targets": {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("kind", "tied"), BASES)
def test_the_merge_equals_pefts_own(tmp_path: Path, monkeypatch, kind: str, tied: bool, changes: dict) -> None:
    from peft import PeftModel

    base = tiny.model(tmp_path / "base", kind=kind, tied=tied)
    network = trained(base, **changes)
    lora = save(network, tmp_path / "adapter")
    plain = networks.load(base, torch.float32, "cpu")
    assert (logits(network) - logits(plain)).abs().max() > 0.02
    plan = merge_plan.plan_merge(base, adapter_files.read(lora))
    ours = {name: torch.cat(list(blocks)).float() for _, name, blocks in merge.Merge(plan, None).pieces()}
    loaded = PeftModel.from_pretrained(networks.load(base, torch.float32, "cpu"), lora)
    exact = rounding.in_float64(loaded).merge_and_unload()
    theirs = loaded.merge_and_unload().eval()
    assert theirs.state_dict().keys() - ours.keys() <= {"lm_head.weight"}  # a tied one
    rounding.assert_as_exact(ours, picked(theirs, ours), picked(exact, ours))
    monkeypatch.setattr(merge, "DTYPE", torch.float32)
    out = networks.load(tiny.merged(base, lora, tmp_path / "out"), torch.float32, "cpu")
    assert_same_function(out, network)


@pytest.mark.parametrize("factor", [0.999, 1.001, -1.0])
def test_a_merge_with_another_scale_is_not_taken_for_pefts(tmp_path: Path, factor: float) -> None:
    """The bounds of these tests are rounding: what is a thousandth off is outside."""
    base = tiny.model(tmp_path / "base")
    network = trained(base)
    lora = adapter_files.read(save(network, tmp_path / "adapter"))
    wrong = replace(
        lora, low_rank={name: replace(part, scale=factor * part.scale) for name, part in lora.low_rank.items()}
    )
    plan = merge_plan.plan_merge(base, wrong)
    ours = {name: torch.cat(list(blocks)).float() for _, name, blocks in merge.Merge(plan, None).pieces()}
    exact, theirs = rounding.in_float64(network).merge_and_unload(), network.merge_and_unload()
    with pytest.raises(AssertionError, match="is rounding"):
        rounding.assert_as_exact(ours, picked(theirs, ours), picked(exact, ours))


@pytest.mark.parametrize(
    ("kind", "tied", "changes", "changed"),
    [
        ("llama", True, {}, 14),
        ("qwen3", False, {"use_rslora": True}, 14),
        ("gemma", True, {"target_modules": ["q_proj", "down_proj"]}, 4),
        ("qwen2", True, {"bias": "all"}, 20),
        ("qwen2", True, {"bias": "lora_only", "target_modules": ["q_proj", "down_proj"]}, 6),
        ("llama", False, {"modules_to_save": ["norm", "nothing_ends_so"]}, 19),
    ],
)
def test_nothing_else_than_what_was_trained_changes(
    tmp_path: Path, kind: str, tied: bool, changes: dict, changed: int
) -> None:
    base = tiny.model(tmp_path / "base", kind=kind, tied=tied)
    before = load_file(base / "model.safetensors")
    after = load_file(
        tiny.merged(base, adapter(tmp_path / "adapter", base, **changes), tmp_path / "out") / "model.safetensors"
    )
    assert before.keys() == after.keys()
    assert sum(not torch.equal(after[name], tensor) for name, tensor in before.items()) == changed
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert config(tmp_path / "out")["tie_word_embeddings"] == tied


@pytest.mark.parametrize("shard", ["5GB", "50KB"])
@pytest.mark.parametrize(
    ("changes", "untied"),
    [
        ({}, False),
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),  # PEFT's head stays the base's embedding
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, True),
        ({"modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
    ],
)
def test_a_head_that_is_no_longer_the_embedding_is_untied(
    tmp_path: Path, monkeypatch, changes: dict, untied: bool, shard: str
) -> None:
    base = tiny.model(tmp_path / "base", shard=shard)
    network = trained(base, **changes)
    monkeypatch.setattr(merge, "DTYPE", torch.float32)
    out = tiny.merged(base, save(network, tmp_path / "adapter"), tmp_path / "out")
    assert config(out)["tie_word_embeddings"] is not untied
    assert_same_function(networks.load(out, torch.float32, "cpu"), network)
    there = {name: tensor.file for name, tensor in checkpoint_files.tensors_of(out).items()}
    assert there.keys() >= {"lm_head.weight", "model.embed_tokens.weight"} or not untied
    if shard == "50KB":
        index = json.loads((out / filenames.WEIGHTS_INDEX).read_text())
        assert index["weight_map"] == {name: file.name for name, file in there.items()}
        assert index["metadata"]["total_size"] == sum(
            t.nbytes for file in set(there.values()) for t in load_file(file).values()
        )


@pytest.mark.parametrize("changes", [{}, {"use_dora": True, "modules_to_save": ["lm_head"]}])
def test_an_adapter_is_merged_onto_the_4_bit_weights_that_it_was_trained_on(
    tmp_path: Path, monkeypatch, changes: dict
) -> None:
    base = tiny.model(tmp_path / "base", tied=False)
    network = trained(base, Quantization(), **changes)
    lora = save(network, tmp_path / "adapter")
    layers = networks.linear4bit(networks.load(base, torch.float32, "cpu", Quantization()))
    hashes = {f"{name}.weight": networks.tensor_sha256(networks.dequantize(layer)) for name, layer in layers}
    assert len(hashes) == 14
    (lora / "base_tensors.json").write_text(json.dumps({"dequantized": hashes, "dtype": "float32"}))
    monkeypatch.setattr(merge, "DTYPE", torch.float32)
    exact = tiny.merged(base, lora, tmp_path / "exact", dequantizer.Dequantizer(lora, Quantization()))
    assert_same_function(networks.load(exact, torch.float32, "cpu"), network)
    usual = networks.load(tiny.merged(base, lora, tmp_path / "usual"), torch.float32, "cpu")
    with pytest.raises(AssertionError, match="is rounding"):
        assert_same_function(usual, network)


@pytest.mark.parametrize(("kind", "tied"), BASES)
def test_a_sharded_base_gives_the_same_weights(tmp_path: Path, kind: str, tied: bool) -> None:
    one = tiny.model(tmp_path / "one", kind=kind, tied=tied)
    many = tiny.model(tmp_path / "many", kind=kind, tied=tied, shard="50KB")
    assert len(list(checkpoint_files.files(many))) > 2
    lora = adapter_files.read(adapter(tmp_path / "adapter", one))
    for base in (one, many):
        merge.write_weights(base, tmp_path / f"out-{base.name}", lora, None)
    whole = load_file(tmp_path / "out-one/model.safetensors")
    parts: dict[str, torch.Tensor] = {}
    for shard in checkpoint_files.files(tmp_path / "out-many"):
        parts |= load_file(shard)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_does_not_read_back_is_refused(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    sums = merge.write_weights(base, tmp_path / "out", adapter_delta.AdapterDelta(), None)
    certificate.in_fresh_process(safetensors_stream.verify, tmp_path / "out", sums)
    file = tmp_path / "out/model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(UserError, match=r"model\.safetensors does not read back as it was written"):
        certificate.in_fresh_process(safetensors_stream.verify, tmp_path / "out", sums)


def test_a_measuring_process_that_is_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="ended with -9: most likely this machine's memory ran out"):
        certificate.in_fresh_process(signal.raise_signal, signal.SIGKILL)


def edit(folder: Path, change) -> Path:
    edit_tensors(folder / "adapter_model.safetensors", change)
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"
HEAD, BIAS = "base_model.model.lm_head.weight", f"{Q}.base_layer.bias"
DORA, SAVED, ALL = {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "all"}


@pytest.mark.parametrize(
    ("changes", "change", "says"),
    [
        ({}, lambda t: t.pop(f"{Q}.lora_B.weight"), r"incomplete: .*q_proj\.lora_B\.weight is missing"),
        ({}, lambda t: t.pop(f"{Q}.lora_A.weight"), r"incomplete: .*q_proj\.lora_A\.weight is missing"),
        ({}, lambda t: t[f"{Q}.lora_B.weight"].zero_(), r"no effect on .*layers\.0\.self_attn\.q_proj"),
        ({}, lambda t: t.clear(), "holds no tensors"),
        ({}, lambda t: t.update({f"{Q}.weight": torch.ones(128, 64)}), r"holds .*q_proj\.weight, which this merge does not"),
        ({}, lambda t: t.update({BIAS: torch.ones(128)}), r"holds .*q_proj\.bias, which this merge does not know"),
        ({}, lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(128)}), "lora_magnitude_vector, which"),
        ({}, lambda t: t.update({f"{Q}.lora_embedding_A": torch.ones(4, 2)}), r"incomplete: .*q_proj\.lora_embedding_B is missing"),
        ({}, lambda t: t.update({n.replace("layers.0", "layers.9"): v.clone() for n, v in t.items()}), "another base"),
        ({}, lambda t: t[f"{Q}.lora_A.weight"].fill_(float("inf")), r"not finite, in .*q_proj\.lora_A\.weight"),
        ({}, lambda t: t[f"{Q}.lora_A.weight"].fill_(3e38), r"q_proj\.weight would hold values that are not finite"),
        ({}, lambda t: t.update({f"{Q}.lora_{x}.weight": torch.ones(s) for x, s in (("A", (2, 64)), ("B", (128, 2)))}),
         "q_proj has rank 2, and rank 4 in its config"),
        (DORA, lambda t: t.pop(f"{Q}.lora_magnitude_vector"), r"incomplete: .*q_proj\.lora_magnitude_vector is missing"),
        (DORA, lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(1)}), "q_proj.weight has shape"),
        (SAVED, lambda t: t.pop(HEAD), r"incomplete: lm_head\.weight is missing"),
        (SAVED, lambda t: t.update({HEAD: torch.ones(2, 64)}), r"another base: lm_head\.weight has shape"),
        (SAVED, lambda t: t[HEAD].fill_(float("nan")), r"not finite, in .*lm_head\.weight"),
        (SAVED, lambda t: t.update({f"{HEAD[:-6]}other": torch.ones(2)}), r"another base: lm_head\.other is not in"),
        (ALL, lambda t: t.pop(BIAS), r"incomplete: .*q_proj\.bias is missing"),
        (ALL, lambda t: t[BIAS].zero_(), r"no effect on .*q_proj\.bias"),  # of a random Qwen2, biases are 0
    ],
)  # fmt: skip
def test_a_damaged_adapter_is_refused_by_name(tmp_path: Path, changes: dict, change, says: str) -> None:
    base = tiny.model(tmp_path / "base", kind="qwen2")
    lora = edit(adapter(tmp_path / "adapter", base, **changes), change)
    with pytest.raises(UserError, match=says) as refusal:
        merge.write_weights(base, tmp_path / "out", adapter_files.read(lora), None)
    assert "\n" not in str(refusal.value)


def test_a_fraction_of_alpha_counts(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    lora = adapter(tmp_path / "adapter", base)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0.6}))
    (first, *_) = adapter_files.read(lora).low_rank.values()
    assert first.scale == pytest.approx(0.6 / config["r"])


@pytest.mark.parametrize(
    "change", [{"r": "4"}, {"lora_alpha": None}, {"lora_alpha": True}, {"base_model_name_or_path": 5}]
)
def test_settings_of_other_types_are_named(tmp_path: Path, change: dict) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8} | change))
    with pytest.raises(UserError, match=f"adapter_config.json: {next(iter(change))} is"):
        adapter_files.read_config(tmp_path)


def test_a_saved_module_that_did_not_change_is_refused(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    embedding = load_file(base / "model.safetensors")["model.embed_tokens.weight"].float()
    lora = edit(adapter(tmp_path / "adapter", base, **SAVED), lambda t: t.update({HEAD: embedding}))
    with pytest.raises(UserError, match=r"no effect on lm_head\.weight"):
        merge.write_weights(base, tmp_path / "out", adapter_files.read(lora), None)


def test_an_adapter_of_another_shape_is_refused(tmp_path: Path) -> None:
    lora = adapter(tmp_path / "adapter", tiny.model(tmp_path / "wide", hidden_size=96))
    with pytest.raises(UserError, match=r"another base: .* has shape"):
        merge.write_weights(tiny.model(tmp_path / "base"), tmp_path / "out", adapter_files.read(lora), None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}, "uses DoRA on .*embed_tokens"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights pissa"),
        ({"init_lora_weights": "olora"}, "uses init_lora_weights olora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication"),
    ],
)
def test_what_this_merge_does_not_know_is_refused(tmp_path: Path, changes: dict, says: str) -> None:
    lora = adapter(tmp_path / "adapter", tiny.model(tmp_path / "base"), **changes)
    with pytest.raises(UserError, match=f"{says}.*, which this merge does not know"):
        adapter_files.read(lora)


@pytest.mark.parametrize("key", adapter_files.UNSUPPORTED)
def test_options_that_this_merge_does_not_know_are_refused_by_name(tmp_path: Path, key: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, key: True}))
    with pytest.raises(UserError, match=f"the adapter uses {key}, which"):
        adapter_files.read(tmp_path)


def test_the_dequantized_base_is_proved_tensor_by_tensor(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base")
    layers = networks.linear4bit(networks.load(base, torch.bfloat16, "cpu", Quantization()))
    hashes = {f"{name}.weight": networks.tensor_sha256(networks.dequantize(layer)) for name, layer in layers}
    note = tmp_path / "base_tensors.json"
    note.write_text(json.dumps({"dequantized": hashes, "dtype": "bfloat16"}))
    proving = dequantizer.Dequantizer(tmp_path, Quantization())
    merge.write_weights(base, tmp_path / "out", adapter_delta.AdapterDelta(), proving)
    written = load_file(tmp_path / "out/model.safetensors")
    assert all(networks.tensor_sha256(written[name]) == sha256 for name, sha256 in hashes.items())
    other = dequantizer.Dequantizer(tmp_path, Quantization(bnb_4bit_quant_type="fp4"))
    with pytest.raises(UserError, match="is not the tensor that the adapter was trained on"):
        merge.write_weights(base, tmp_path / "out2", adapter_delta.AdapterDelta(), other)


def test_the_end_of_turn_becomes_a_stop_token_everywhere(tmp_path: Path) -> None:
    base = tiny.model(tmp_path / "base", eos_token_id=0)
    (tmp_path / "adapter").mkdir()
    tiny.tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter/contract.json").write_text("{}\n")
    merged_folder.write_rest(base, tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out/contract.json").read_text() == "{}\n"
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [2, 0]
    assert (tmp_path / "out/chat_template.jinja").read_text() == tiny.CHATML


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"use_dora": True, "modules_to_save": ["lm_head"]}),
        ("lora", {"modules_to_save": ["model.embed_tokens"], "ensure_weight_tying": True, "bias": "all"}),
        ("qlora", {"use_dora": True, "modules_to_save": ["embed_tokens", "norm"]}),
    ],
)
def test_the_merge_is_measured_against_the_weights_of_training_unrounded(
    tmp_path: Path, monkeypatch, method: str, changes: dict
) -> None:
    monkeypatch.setattr(paths, "MODELS", tmp_path)
    base = tiny.model(tmp_path / "tiny", kind="qwen2")
    settings = Settings(method=method, model=Model(source="local", path=str(base)))
    network = trained(base, settings.quantization if method == "qlora" else None, torch.bfloat16, **changes)
    lora = save(network, tmp_path / "adapter")
    (lora / "base_tensors.json").write_text(json.dumps({"dequantized": {}, "dtype": "bfloat16"}))
    loaded = certificate.load_trained(settings, lora, torch.bfloat16)
    found = dict(loaded.named_parameters())
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(found[name].cpu(), weight, rtol=0, atol=0)  # of equal dtype, too


def full_run(home: Path) -> torch.nn.Module:
    """outputs/r/adapter/ of a full training, as stage 02 writes it; returns the trained model."""
    base, data = home / "models/tiny", home / "outputs/r/data"
    network = networks.load(base, torch.float32, "cpu").eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    config = manifest.read(data).config | Settings(method="full").sections("method", "lora", "quantization", "train")
    with Stage("train", home / "outputs/r/adapter", config, [base, data]).writing() as work:
        network.save_pretrained(work, max_shard_size="100KB")
        for name in (filenames.CHAT_TEMPLATE, "contract.json"):
            (work / name).write_bytes((data / name).read_bytes())
        tiny.tokenizer().save_pretrained(work)
        (work / "metrics.json").write_text("{}\n")
        (work / "base_tensors.json").write_text(json.dumps({"dequantized": {}, "dtype": "bfloat16"}))
        record = reference.record(network, [], reference.probe_rows(data), torch.bfloat16, None, 512)
        (work / filenames.REFERENCE).write_text(json.dumps(record))
    return network


def test_full_training_ships_all_its_weights(tmp_path: Path, monkeypatch, stage: Run) -> None:
    homes.settle(monkeypatch, tmp_path)
    tiny.model(tmp_path / "source/tiny")
    tiny.rows(tmp_path / "source/rows.jsonl", 30)
    words = ("--run", "r", "--model.source", "local", "--model.path", str(tmp_path / "source/tiny"), "--data.train_file",
             str(tmp_path / "source/rows.jsonl"))  # fmt: skip
    for script in ("00_download_model.py", "01_data_collator.py"):
        assert stage(script, *words).returncode == 0
    network = full_run(tmp_path)
    shutil.rmtree(tmp_path / "models")  # no base is needed any more

    words += ("--method", "full")
    said = stage("03_merge_lora.py", *words, "--merge.strategy", "dequantized")
    assert said.returncode == 2 and "nothing was quantized in a full run" in said.stderr
    assert "no other base is needed" in stage("03_merge_lora.py", *words, "--base").stdout
    done = stage("03_merge_lora.py", *words)
    assert done.returncode == 0, done.stderr
    assert "outputs/r/merged is complete: all weights in bfloat16" in done.stdout
    out = tmp_path / "outputs/r/merged"
    report = json.loads((out / "merge_report.json").read_text())
    assert report["strategy"] == "original" and report["candidates"]["dequantized"] is None
    assert 0 < report["candidates"]["original"]["kl_mean"] < 0.01 and report["passed"]
    there = {name: tensor.file for name, tensor in checkpoint_files.tensors_of(out).items()}
    assert (
        len(set(there.values())) > 2
        and there.keys() == checkpoint_files.tensors_of(tmp_path / "outputs/r/adapter").keys()
    )
    wanted = network.to(torch.bfloat16).state_dict()
    assert all(torch.equal(load_file(file)[name], wanted[name]) for name, file in there.items())
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2
