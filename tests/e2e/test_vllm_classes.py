"""The table of what vLLM serves, against the classes of the vLLM that is installed."""

import pytest
from support import served_families, vllm_classes

from lockstep.model import vllm_table

pytestmark = pytest.mark.e2e


def test_what_is_known_of_vllm_is_what_the_installed_one_says() -> None:
    assert vllm_classes.version().startswith(vllm_table.VERSION)
    told = vllm_classes.answers(*vllm_table.CLASSES, path=served_families.STANDINS)
    for architecture, served in vllm_table.CLASSES.items():
        answer = told[architecture]
        assert (answer["lora"], answer["wrapper"]) == (bool(served.layers), served.wrapper), architecture
        packed = {name for name, parts in answer["packed"].items() if len(parts) > 1}
        assert not packed & served.layers, f"{architecture}: vLLM takes updates of the parts"


def test_what_imports_torchvision_is_known() -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("torchvision is installed")
    for architecture, answer in vllm_classes.answers(*vllm_table.CLASSES).items():
        assert vllm_table.CLASSES[architecture].torchvision == ("error" in answer), architecture
