"""What the controls of the chat page offer: their values, and where the sliders end."""

from lockstep.settings.schema import GREEDY, Sampling

CONTROLS = ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens")
PRESETS = {
    "balanced": Sampling(),
    "greedy": GREEDY,
    "creative": Sampling(temperature=1, top_p=0.95, top_k=100, repetition_penalty=1.05, max_tokens=512),
}
STEPS = {"temperature": 0.05, "top_p": 0.05, "top_k": 1, "repetition_penalty": 0.05}  # of the sliders
# Where a slider over all that the setting takes would be of no use.
SLIDER_ENDS = {"top_k": {"maximum": 200}, "repetition_penalty": {"minimum": 0.8}}


def preset_of(sampling: Sampling) -> str | None:
    """The preset that has these settings, if one has."""
    for name, preset in PRESETS.items():
        if all(getattr(preset, key) == getattr(sampling, key) for key in CONTROLS):
            return name
    return None


def slider_ends(name: str) -> tuple[float, float]:
    """The least and the greatest value of a sampling setting's slider: what the setting takes, or less."""
    bounds = Sampling.model_json_schema()["properties"][name]
    if "exclusiveMinimum" in bounds:
        bounds["minimum"] = bounds["exclusiveMinimum"] + STEPS[name]
    bounds |= SLIDER_ENDS.get(name, {})
    return bounds["minimum"], bounds["maximum"]
