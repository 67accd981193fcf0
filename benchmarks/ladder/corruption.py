"""A rung of the ladder: one way in which what is served may be another model, and the names that are right for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ladder.runs import Run

MERGED, LORA = "merged", "lora"
BOTH = (MERGED, LORA)
# How the weights come into a server that runs: a folder's into its engine, an adapter's beside others, or not at all.
RELOADED, LOADED, STARTED = "reloaded", "loaded", "started"

Spoil = Callable[[Run, str], None]


@dataclass(frozen=True)
class Corruption:
    """A rung.

    Args:
        modes: of serving in which it can be.
        spoil: makes a copy of a run so; is told the mode.
        right: the names of refusals that say what it is; see `reasons`.
        beyond: what it changes beside the distribution of next tokens: its divergence may be none.
        how: for each mode that is not reloaded (merged) or loaded (lora), how a live server gets it.
        is_right: nothing is wrong with it, and it must be served.
        same_model: it makes one model in both modes, whose divergence is measured once.
    """

    name: str
    spoil: Spoil
    right: frozenset[str] = frozenset({"other_weights"})
    modes: tuple[str, ...] = BOTH
    beyond: str = ""
    how: Mapping[str, str] | None = None
    is_right: bool = False
    same_model: bool = True

    def way(self, mode: str) -> str:
        """RELOADED, LOADED or STARTED."""
        return (self.how or {}).get(mode, RELOADED if mode == MERGED else LOADED)
