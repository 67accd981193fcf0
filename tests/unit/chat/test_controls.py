"""What the controls of the chat page offer."""

import pytest
from pydantic import ValidationError

from lockstep.chat import controls
from lockstep.settings.schema import Sampling


@pytest.mark.parametrize(
    ("name", "ends"),
    [("temperature", (0, 2)), ("top_p", (0.05, 1)), ("top_k", (-1, 200)), ("repetition_penalty", (0.8, 2))],
)
def test_a_slider_offers_what_the_setting_takes(name: str, ends: tuple[float, float]) -> None:
    assert controls.slider_ends(name) == ends
    for value in ends:
        assert getattr(Sampling.model_validate({name: value}), name) == value
    if name not in controls.SLIDER_ENDS:
        for value in (ends[0] - controls.STEPS[name], ends[1] + controls.STEPS[name]):
            with pytest.raises(ValidationError):
                Sampling.model_validate({name: value})
