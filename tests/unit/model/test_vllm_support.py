import hashlib
import json
from pathlib import Path

import pytest

from lockstep.artifacts import filenames
from lockstep.errors import UserError
from lockstep.model import vllm_support
from lockstep.settings import yaml_file


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"serve.mode": "lora", "lora.use_dora": "true"}, "--lora.use_dora"),
        ({"serve.mode": "lora", "lora.modules_to_save": "lm_head"}, "--lora.modules_to_save"),
        ({"serve.mode": "lora", "method": "full"}, "makes no adapter"),
        (
            {"serve.mode": "lora", "method": "lora", "lora.r": "300", "lora.init_lora_weights": "pissa"},
            "this one has 600",
        ),
        ({"lora.init_lora_weights": "pissa"}, "--method lora"),
        ({"lora.init_lora_weights": "olora"}, "--method lora"),
        ({"lora.init_lora_weights": "orthogonal"}, "--method lora"),
        ({"method": "full", "lora.loraplus_lr_ratio": "4"}, "trains no adapter"),
    ],
)
def test_what_could_not_be_served_is_refused_with_a_way_out(settings: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        vllm_support.check(yaml_file.load(None, settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"serve.mode": "lora"},
        {"serve.mode": "lora", "lora.use_rslora": "true", "lora.r": "24", "lora.loraplus_lr_ratio": "8"},
        {"lora.use_dora": "true", "lora.modules_to_save": "lm_head"},
        {"method": "lora", "lora.init_lora_weights": "pissa", "serve.mode": "lora"},
        {"method": "full"},
    ],
)
def test_what_can_be_served_is_not_refused(settings: dict[str, str]) -> None:
    vllm_support.check(yaml_file.load(None, settings))


def test_an_adapter_to_start_from_must_have_the_same_shape(tmp_path: Path) -> None:
    settings = yaml_file.load(None, {"lora.start_from": str(tmp_path)})
    with pytest.raises(UserError, match="holds no adapter"):
        vllm_support.check_start(settings)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 32}))
    with pytest.raises(UserError, match="has no adapter_model"):
        vllm_support.check_start(settings)
    (tmp_path / filenames.ADAPTER_WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=r"--lora\.r is 16, and the adapter to start from has 8"):
        vllm_support.check_start(settings)
    same = {"r": 16, "lora_alpha": 32}
    (tmp_path / "adapter_config.json").write_text(json.dumps(same | {"alpha_pattern": {"q_proj": 64}}))
    with pytest.raises(UserError, match="sets alpha_pattern, which no training here does"):
        vllm_support.check_start(settings)
    (tmp_path / "adapter_config.json").write_text(json.dumps(same))
    vllm_support.check_start(settings)
    with pytest.raises(UserError, match=r"leave out --lora\.init_lora_weights pissa"):
        vllm_support.check_start(settings.replace("lora", {"init_lora_weights": "pissa"}))
    record = {"bytes": 0, "sha256": hashlib.sha256(b"other bytes").hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {filenames.ADAPTER_WEIGHTS: record}}))
    with pytest.raises(UserError, match=f"{filenames.ADAPTER_WEIGHTS} was changed after it was made"):
        vllm_support.check_start(settings)
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="holds no adapter"):
        vllm_support.check_start(settings)
