"""Keys of config.json that decide what a model computes must be the base's; others may differ."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from lockstep.verification import config_proof
from lockstep.verification.verdict import FAILED, PASSED, Proof


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model(tmp_path_factory.mktemp("verify") / "base")


def proof_of(base: Path, out: Path, **changes: Any) -> Proof:
    shutil.copytree(base, out)
    config = json.loads((base / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return config_proof.of_configs(base, out)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"transformers_version": "4.40.0", "use_cache": False, "torch_dtype": "float16", "dtype": None},
        {"unsloth_version": "2026.10", "eos_token_id": [1, 2], "max_position_embeddings": 4096},
        {"architectures": ["Other"], "attention_dropout": 0.1},
    ],
)
def test_keys_that_change_nothing_may_differ(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert proof_of(base, tmp_path / "m", **changes).status == PASSED


@pytest.mark.parametrize(
    ("changes", "diagnosis"),
    [
        ({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, "other_rope"),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}}, "other_rope"),
        ({"rms_norm_eps": 1e-5}, "other_weights"),
        ({"hidden_act": "gelu"}, "other_weights"),
    ],
)
def test_keys_that_decide_are_named(base: Path, tmp_path: Path, changes: dict[str, Any], diagnosis: str) -> None:
    proof = proof_of(base, tmp_path / "m", **changes)
    assert (proof.status, proof.diagnosis) == (FAILED, diagnosis), proof.text
    assert proof.figures["config_differences"]


def test_an_earlier_spelling_is_the_same(base: Path, tmp_path: Path) -> None:
    old, config = tmp_path / "old", json.loads((base / "config.json").read_text())
    shutil.copytree(base, old)
    rope = config.pop("rope_parameters")
    (old / "config.json").write_text(json.dumps(config | {"rope_theta": rope["rope_theta"]}))
    assert config_proof.of_configs(base, old).status == PASSED
