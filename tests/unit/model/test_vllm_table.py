import pytest

from lockstep.model import vllm_table


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_local_experts": 8}, True),
        ({"text_config": {"num_experts": 128}}, True),
        ({"num_local_experts": 0}, False),
        ({"num_experts": None}, False),
        ({"num_experts": 4, "enable_moe_block": False}, False),
        ({}, False),
    ],
)
def test_experts_are_counted_in_the_text_part(config: dict[str, object], expected: bool) -> None:
    assert vllm_table.has_experts(config) == expected


def test_an_architecture_that_is_not_known_is_none() -> None:
    assert vllm_table.of({}) is None and vllm_table.architecture_of({"architectures": None}) == "?"
    served = vllm_table.of({"architectures": ["Qwen3_5ForConditionalGeneration"]})
    assert served and served.wrapper and served.torchvision and "in_proj_qkv" in served.layers
