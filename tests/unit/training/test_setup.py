"""What is refused of a model before its weights are loaded."""

from pathlib import Path

import pytest
import torch
from support import moe

from lockstep.errors import UserError
from lockstep.model import networks
from lockstep.settings.schema import Lora, Model
from lockstep.settings.tree import Settings
from lockstep.training import setup


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_dropout_on_experts_is_refused_before_weights_are_loaded(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_HOME", str(tmp_path))
    settings = Settings(method=method, model=Model(source="local", path=str(tmp_path / "m")), lora=Lora())
    moe.written("gpt-oss", settings.model.folder)
    for file in settings.model.folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"set --lora.lora_dropout 0, or --lora.target_parameters none"):
        setup.load_model(settings, "cpu", torch.float32)
    settings = settings.model_copy(update={"lora": Lora(target_parameters=("none",))})
    with pytest.raises(OSError, match=r"no file named model.safetensors"):  # it comes as far as the weights
        setup.load_model(settings, "cpu", torch.float32)
    assert list(networks.empty(settings.model.folder).parameters())
