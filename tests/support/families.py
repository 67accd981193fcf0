"""Tiny random models of many families, of transformers' own classes, saved as their checkpoints are on the Hub.

Two layers each, or the fewest that show every kind of layer that the family has. With transformers' own initialisation
all layers together move the logits by less than bfloat16 rounds: nothing that a training or a merge does would show.
So matrices are multiplied by 4 and embeddings by 8.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import tiny
from support.published_layouts import (
    Tensors,
    convolutions_apart,
    keys_of_sharing_layers,
    siglip_prefixed,
    stacked,
    with_mtp,
)

MATRICES, EMBEDDINGS = 4.0, 8.0  # factors on the initial weights
# What checkpoints keep in float32 while the rest is bfloat16, by the last part of the name.
FLOAT32 = ("A_log", "e_score_correction_bias", "expert_bias")
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
Values = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
        name: what tests and the page of models call it.
        layers: dense, experts, hybrid, hybrid experts, wrapper, wrapper experts, or other.
        network: the class in transformers.
        values: of its config.
        float32: further last parts of the names of tensors that its checkpoints keep in float32.
        published: makes the tensors of a checkpoint on the Hub of those that transformers writes, where they differ.
    """

    name: str
    layers: str
    network: str
    values: Values = field(repr=False)
    float32: tuple[str, ...] = ()
    published: Callable[[Tensors], Tensors] | None = None


def text(**changes: Any) -> Values:
    """The values of a decoder's config that most families share."""
    return TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    } | changes  # fmt: skip


def headless(**changes: Any) -> Values:
    """The same without head_dim, where the class knows none."""
    values = text(**changes)
    del values["head_dim"]
    return values


def layer_types(*names: str) -> Values:
    return {"layer_types": list(names), "num_hidden_layers": len(names)}


LATENT = {  # multi-head latent attention, of DeepSeek and what follows it
    "kv_lora_rank": 16, "q_lora_rank": 32, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16,
    "num_key_value_heads": 4,
}  # fmt: skip
DELTA = {  # gated DeltaNet, of Qwen3-Next and Qwen3.5
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
} | layer_types("linear_attention", "full_attention")  # fmt: skip
MAMBA = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_expand": 2, "mamba_chunk_size": 32,
    "mamba_n_groups": 1,
}  # fmt: skip
FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
SHARED = FEW | {"shared_expert_intermediate_size": 64}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_shared_experts": 1, "n_group": 1,
          "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip
SLIDING = layer_types("sliding_attention", "full_attention") | {"sliding_window": 64}
GEMMA4 = {"global_head_dim": 32, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512}
QWEN_VISION = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64,
    "num_position_embeddings": 16,
}  # fmt: skip
SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
          "patch_size": 4}  # fmt: skip
QWEN_IDS = {"image_token_id": 501, "video_token_id": 502, "vision_start_token_id": 503, "vision_end_token_id": 504}
GEMMA4_IDS = {
    "boi_token_id": 501, "eoi_token_id": 502, "image_token_id": 503, "video_token_id": 504, "boa_token_id": 505,
    "eoa_token_index": 506, "audio_token_id": 507,
}  # fmt: skip
IMAGES = {  # of preprocessor_config.json: what a wrapper's folder holds beside the tokenizer
    "Qwen3_5": ("Qwen2VLImageProcessor", "Qwen3VLProcessor"),
    "Qwen3VL": ("Qwen2VLImageProcessor", "Qwen3VLProcessor"),
    "Gemma3": ("Gemma3ImageProcessor", "Gemma3Processor"),
    "Gemma4": ("Gemma4ImageProcessor", "Gemma4Processor"),
    "Mistral3": ("PixtralImageProcessor", "PixtralProcessor"),
}
GEMMA4_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                 "num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 64}  # fmt: skip

DENSE = (
    Family("Llama 3", "dense", "LlamaForCausalLM", text()),
    Family("Llama 3.2", "dense", "LlamaForCausalLM", text(tie_word_embeddings=True)),
    Family("Qwen2.5", "dense", "Qwen2ForCausalLM", headless()),
    Family("Qwen3", "dense", "Qwen3ForCausalLM", text()),
    Family("Mistral", "dense", "MistralForCausalLM", text(sliding_window=None)),
    Family("Ministral 3 text", "dense", "Ministral3ForCausalLM", text()),
    Family("Phi-3", "dense", "Phi3ForCausalLM", headless()),
    Family("GLM-4", "dense", "Glm4ForCausalLM", text()),
    Family("OLMo 2", "dense", "Olmo2ForCausalLM", headless()),
    Family("OLMo 3", "dense", "Olmo3ForCausalLM", headless(**SLIDING)),
    Family("Granite 3", "dense", "GraniteForCausalLM", headless()),
    Family("Granite 4 dense", "dense", "GraniteMoeHybridForCausalLM", headless(
        **layer_types("attention", "attention"), num_local_experts=0, shared_intermediate_size=256, mamba_n_heads=4,
        position_embedding_type="rope")),
    Family("SmolLM3", "dense", "SmolLM3ForCausalLM", headless(tie_word_embeddings=True, no_rope_layers=[1, 0])),
    Family("ERNIE 4.5", "dense", "Ernie4_5ForCausalLM", text(tie_word_embeddings=True)),
    Family("Hunyuan dense", "dense", "HunYuanDenseV1ForCausalLM", text(tie_word_embeddings=True)),
    Family("Seed-OSS", "dense", "SeedOssForCausalLM", text()),
    Family("Cohere 2", "dense", "Cohere2ForCausalLM", headless(
        tie_word_embeddings=True, logit_scale=0.5, **SLIDING)),
    Family("StableLM", "dense", "StableLmForCausalLM", headless()),
    Family("MiniCPM3", "dense", "MiniCPM3ForCausalLM", headless(dim_model_base=16, **LATENT)),
    Family("Gemma 2", "dense", "Gemma2ForCausalLM", text(tie_word_embeddings=True, query_pre_attn_scalar=16, **SLIDING)),
    Family("Gemma 3 text", "dense", "Gemma3ForCausalLM", text(
        tie_word_embeddings=True, query_pre_attn_scalar=16, **SLIDING)),
    Family("Gemma 4 text", "dense", "Gemma4ForCausalLM", text(tie_word_embeddings=True, **SLIDING, **GEMMA4)),
    Family("EXAONE 4", "dense", "Exaone4ForCausalLM", headless(**SLIDING)),
    Family("Starcoder2", "dense", "Starcoder2ForCausalLM", headless(tie_word_embeddings=True)),
    Family("Nemotron", "dense", "NemotronForCausalLM", text()),
    Family("Apertus", "dense", "ApertusForCausalLM", headless()),
    Family("Arcee", "dense", "ArceeForCausalLM", text()),
)  # fmt: skip

EXPERTS = (
    Family("Qwen3-MoE", "experts", "Qwen3MoeForCausalLM", text(**FEW)),
    Family("Qwen2-MoE", "experts", "Qwen2MoeForCausalLM", headless(**SHARED)),
    Family("Mixtral", "experts", "MixtralForCausalLM", text(num_local_experts=4, num_experts_per_tok=2)),
    Family("GLM-4-MoE", "experts", "Glm4MoeForCausalLM", text(**ROUTED, num_mtp_layers=0)),
    Family("DeepSeek-V3", "experts", "DeepseekV3ForCausalLM", headless(**ROUTED, **LATENT, num_mtp_layers=0)),
    Family("GLM-5", "experts", "GlmMoeDsaForCausalLM", headless(
        **ROUTED, **LATENT, index_topk=16, index_head_dim=16, index_n_heads=2)),
    Family("DeepSeek-V4", "experts", "DeepseekV4ForCausalLM", TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "moe_intermediate_size": 64, "num_attention_heads": 4, "head_dim": 16,
        "q_lora_rank": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512,
        "hc_mult": 2, "o_groups": 2, "o_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 16,
        "sliding_window": 64, "num_nextn_predict_layers": 0, "partial_rotary_factor": 0.5,
        "mlp_layer_types": ["hash_moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    } | layer_types("sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention")),
    Family("MiniMax M2", "experts", "MiniMaxM2ForCausalLM", text(num_local_experts=4, num_experts_per_tok=2)),
    Family("ERNIE 4.5 MoE", "experts", "Ernie4_5_MoeForCausalLM", headless(
        moe_num_experts=4, moe_k=2, moe_intermediate_size=64, moe_num_shared_experts=1), float32=("gate.weight",)),
    Family("OLMoE", "experts", "OlmoeForCausalLM", headless(num_experts=4, num_experts_per_tok=2)),
    Family("GraniteMoe", "experts", "GraniteMoeForCausalLM", headless(num_local_experts=4, num_experts_per_tok=2)),
    Family("gpt-oss", "experts", "GptOssForCausalLM", text(num_local_experts=4, num_experts_per_tok=2, **SLIDING)),
    Family("Gemma 4 MoE text", "experts", "Gemma4ForCausalLM", text(
        tie_word_embeddings=True, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=64,
        attention_k_eq_v=True, num_global_key_value_heads=1, **SLIDING, **GEMMA4 | {"hidden_size_per_layer_input": 0})),
    Family("Llama 4 text", "experts", "Llama4ForCausalLM", text(
        num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=256, attention_chunk_size=64,
        interleave_moe_layer_step=2, no_rope_layers=[1, 0])),
    Family("dots.llm1", "experts", "Dots1ForCausalLM", text(**ROUTED, **layer_types(*["full_attention"] * 2))),
    Family("Hunyuan MoE", "experts", "HunYuanMoEV1ForCausalLM", text(num_experts=4, moe_topk=2)),
)  # fmt: skip

HYBRIDS = (
    Family("Qwen3.5 text", "hybrid", "Qwen3_5ForCausalLM", text(**DELTA)),
    Family("LFM2", "hybrid", "Lfm2ForCausalLM", headless(
        tie_word_embeddings=True, block_auto_adjust_ff_dim=False, **layer_types("conv", "full_attention"))),
    Family("LFM2-MoE", "hybrid experts", "Lfm2MoeForCausalLM", headless(
        tie_word_embeddings=True, num_dense_layers=1, **FEW, **layer_types("conv", "full_attention"))),
    Family("Granite 4 hybrid", "hybrid experts", "GraniteMoeHybridForCausalLM", headless(
        **layer_types("mamba", "attention"), num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64,
        **MAMBA)),
    Family("Qwen3-Next", "hybrid experts", "Qwen3NextForCausalLM", text(**SHARED, **DELTA), published=with_mtp),
    Family("Falcon-H1", "hybrid", "FalconH1ForCausalLM", text(mamba_d_ssm=128, **MAMBA)),
    Family("Nemotron-H", "hybrid experts", "NemotronHForCausalLM", text(
        layers_block_type=["mamba", "moe", "attention", "mlp"], mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=16,
        n_groups=1, chunk_size=32, moe_shared_expert_intermediate_size=64,
        **{k: v for k, v in ROUTED.items() if k != "first_k_dense_replace"})),
    Family("Bamba", "hybrid", "BambaForCausalLM", headless(attn_layer_indices=[1], **MAMBA)),
    Family("Jamba", "hybrid experts", "JambaForCausalLM", headless(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=4,
        num_experts_per_tok=2, mamba_d_state=8, mamba_dt_rank=8)),
    Family("Mamba 2", "hybrid", "Mamba2ForCausalLM", TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 16, "head_dim": 16, "expand": 4, "state_size": 16,
        "n_groups": 1, "chunk_size": 32}),
    Family("OLMo hybrid", "hybrid", "OlmoHybridForCausalLM", headless(
        linear_num_key_heads=4, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=32,
        **layer_types("linear_attention", "full_attention")), published=convolutions_apart),
)  # fmt: skip

WRAPPERS = (
    Family("Qwen3.5", "wrapper", "Qwen3_5ForConditionalGeneration", TOKENS | QWEN_IDS | {
        "text_config": text(**DELTA), "vision_config": QWEN_VISION, "tie_word_embeddings": False}, published=with_mtp),
    Family("Qwen3.5 tied", "wrapper", "Qwen3_5ForConditionalGeneration", TOKENS | QWEN_IDS | {
        "text_config": text(tie_word_embeddings=True, **DELTA), "vision_config": QWEN_VISION,
        "tie_word_embeddings": True}, published=with_mtp),
    Family("Qwen3.5-MoE", "wrapper experts", "Qwen3_5MoeForConditionalGeneration", TOKENS | QWEN_IDS | {
        "text_config": text(**SHARED, **DELTA), "vision_config": QWEN_VISION, "tie_word_embeddings": False}, published=stacked),
    Family("Gemma 3", "wrapper", "Gemma3ForConditionalGeneration", TOKENS | {
        "text_config": text(tie_word_embeddings=True, query_pre_attn_scalar=16, **SLIDING), "vision_config": SIGLIP | {
            "vision_use_head": False}, "mm_tokens_per_image": 4, "boi_token_index": 501, "eoi_token_index": 502,
        "image_token_index": 503}, published=siglip_prefixed),
    Family("Gemma 4", "wrapper", "Gemma4ForConditionalGeneration", TOKENS | GEMMA4_IDS | {
        "text_config": text(tie_word_embeddings=True, num_kv_shared_layers=2, **GEMMA4, **SLIDING | layer_types(
            *["sliding_attention", "full_attention"] * 2)),
        "vision_config": GEMMA4_VISION | {"use_clipped_linears": True}, "audio_config": {
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 64,
            "subsampling_conv_channels": [4, 4]}}, published=keys_of_sharing_layers),
    Family("Gemma 4 unified", "wrapper", "Gemma4UnifiedForConditionalGeneration", TOKENS | GEMMA4_IDS | {
        "text_config": text(tie_word_embeddings=True, global_head_dim=32, **SLIDING), "vision_config": {
            "patch_size": 4, "mm_embed_dim": 64, "mm_posemb_size": 16, "output_proj_dims": 64}}),
    Family("Gemma 4 MoE", "wrapper experts", "Gemma4ForConditionalGeneration", TOKENS | GEMMA4_IDS | {
        "text_config": next(family for family in EXPERTS if family.name == "Gemma 4 MoE text").values,
        "vision_config": GEMMA4_VISION}),
    Family("Ministral 3", "wrapper", "Mistral3ForConditionalGeneration", TOKENS | {
        "text_config": text(model_type="ministral3"), "vision_config": SIGLIP | {
            "model_type": "pixtral", "head_dim": 16}, "image_token_index": 501, "tie_word_embeddings": False}),
    Family("Qwen3-VL", "wrapper", "Qwen3VLForConditionalGeneration", TOKENS | QWEN_IDS | {
        "text_config": text(
            intermediate_size=384, rope_parameters={"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}),
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]}, "tie_word_embeddings": False}),
)  # fmt: skip

OTHERS = (
    Family("OPT", "other", "OPTForCausalLM", TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "ffn_dim": 256, "num_attention_heads": 4,
        "max_position_embeddings": 512, "word_embed_proj_dim": 64}),
    Family("Bloom", "other", "BloomForCausalLM", TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    Family("GPT-2", "other", "GPT2LMHeadModel", TOKENS | {
        "vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    Family("GPT-NeoX", "other", "GPTNeoXForCausalLM", headless()),
    Family("Gemma 3n text", "other", "Gemma3nForCausalLM", text(
        tie_word_embeddings=True, num_kv_shared_layers=0, hidden_size_per_layer_input=8, vocab_size_per_layer_input=512,
        laurel_rank=8, activation_sparsity_pattern=[0.0, 0.0], intermediate_size=[256, 256], **SLIDING)),
    Family("BERT", "other", "BertLMHeadModel", TOKENS | {
        "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128}),
    Family("T5", "other", "T5ForConditionalGeneration", TOKENS | {
        "vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 2}),
)  # fmt: skip

ALL = {family.name: family for family in (*DENSE, *EXPERTS, *HYBRIDS, *WRAPPERS, *OTHERS)}


def network(family: Family, seed: int = 0) -> Any:
    """The family's tiny model, in the dtypes of its checkpoints."""
    import torch
    import transformers

    cls = getattr(transformers, family.network)
    torch.manual_seed(seed)
    made = cls(cls.config_class(**family.values)).eval()
    embeddings = {id(module.weight) for module in made.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if not weight.isfinite().all() or name.endswith("sinks"):  # left empty by its class
                weight.normal_(std=0.02)
            if name.endswith("correct_output_scale"):  # of Gemma 3n, zero at first
                weight.fill_(1)
            if weight.dim() > 1:
                weight *= EMBEDDINGS if id(weight) in embeddings else MATRICES
        for name, tensor in made.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                tensor.normal_(std=0.01)
            elif name.endswith("tid2eid"):  # the experts of a token, by its id
                tensor.copy_((torch.arange(len(tensor))[:, None] + torch.arange(tensor.shape[1])) % 4)
            elif not tensor.isfinite().all():  # bounds of Gemma 4's clipped layers
                tensor.clamp_(-16, 16)
    kept = FLOAT32 + family.float32
    for name, tensor in (*made.named_parameters(), *made.named_buffers()):
        if tensor.is_floating_point() and not name.endswith(kept) and "inv_freq" not in name:
            tensor.data = tensor.data.to(torch.bfloat16)
    made.config.dtype = torch.bfloat16
    return made


def write(family: Family, folder: Path, seed: int = 0) -> Path:
    """Save a family's tiny model with a tokenizer; returns the folder."""
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    logging.disable_progress_bar()
    network(family, seed).save_pretrained(folder)
    if family.published:
        file = folder / "model.safetensors"
        save_file(family.published(load_file(file)), file, {"format": "pt"})
    tiny.tokenizer().save_pretrained(folder)
    if family.layers.startswith("wrapper"):
        image, processor = next(names for prefix, names in IMAGES.items() if family.network.startswith(prefix))
        content = {"image_processor_type": image, "processor_class": processor, "patch_size": 4}
        (folder / "preprocessor_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
