"""Families in sizes that vLLM's kernels for CPUs take, and the fields that its classes read beside transformers'."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from support import families
from support.families import Family, Values
from support.programs import ROOT
from support.serving import Home, finished_run

STANDINS = str(ROOT / "tests/support/standins")  # for PYTHONPATH: what wrappers' classes import, and text never calls
HEAD = 32  # the smallest head that vLLM's attention for CPUs takes
DELTA_HEAD = 128  # of gated DeltaNet
# In the Hub's configs, and not in those that transformers writes: vLLM reads them.
LFM2 = {"conv_dim": 64, "block_dim": 64}
DEEPSEEK = {"topk_method": "noaux_tc"}


def sized(values: Values) -> Values:
    """A config's values with heads as large as vLLM needs them; those of multi-head latent attention stay."""
    values = dict(values)
    if "text_config" in values:
        return values | {"text_config": sized(values["text_config"])}
    if "linear_key_head_dim" in values:
        values |= {"linear_key_head_dim": DELTA_HEAD, "linear_value_head_dim": DELTA_HEAD}
    if "conv" in values.get("layer_types", ()):
        values |= LFM2
    if "kv_lora_rank" in values:
        return values | DEEPSEEK
    if "head_dim" not in values:
        return values | {"num_attention_heads": 2, "num_key_value_heads": 2}
    values["head_dim"] = HEAD
    if "global_head_dim" in values:
        values["global_head_dim"] = 2 * HEAD
    if "query_pre_attn_scalar" in values:
        values["query_pre_attn_scalar"] = HEAD
    if "mrope_section" in values.get("rope_parameters", ()):
        values["rope_parameters"] = values["rope_parameters"] | {"mrope_section": [8, 4, 4]}
    return values


def write(name: str, folder: Path) -> Path:
    """A family's tiny model, as large as vLLM needs it."""
    family: Family = families.ALL[name]
    return families.write(replace(family, values=sized(family.values)), folder)


def finished(name: str, folder: Path, *extra: str, base: bool = True) -> Home:
    """All stages on a family."""
    return finished_run(folder, *extra, base=base, model=partial(write, name))
