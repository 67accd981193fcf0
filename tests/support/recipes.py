"""Recipes: configs for real models, by the names of both."""

import yaml
from support.programs import ROOT

from lockstep.settings.tree import Settings

MODELS = {  # configs/NAME.yaml: support/real_configs/NAME.json
    "qwen3.5_4b_qlora": "qwen3.5-4b",
    "qwen3.5_9b_qlora": "qwen3.5-9b",
    "qwen3_30b_a3b_qlora": "qwen3-30b-a3b",
    "gemma4_e4b_qlora": "gemma-4-e4b",
    "gemma4_12b_qlora": "gemma-4-12b",
    "gpt_oss_20b_qlora": "gpt-oss-20b",
    "smollm3_3b_qlora": "smollm3-3b",
    "ministral3_8b_qlora": "ministral-3-8b",
}


def settings_of(recipe: str) -> Settings:
    return Settings(**yaml.safe_load((ROOT / f"configs/{recipe}.yaml").read_text(encoding="utf-8")))
