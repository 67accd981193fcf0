"""What contract and reference of a bundle must look like before anything is computed from them.

A signature says who made a bundle, its hashes that nothing was changed since: neither says that it makes sense.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class _Open(BaseModel):
    """An object that may hold more than is told here: other versions write more."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class _Conversation(_Open):
    name: str
    messages: list[dict[str, Any]]
    prompt_ids: list[int] = Field(min_length=1)


class _Contract(_Open):
    conversations: list[_Conversation] = Field(min_length=1)
    stop_ids: list[int]
    special_ids: dict[str, int | None]


class _Likeliest(_Open):
    ids: list[int]
    logprobs: list[float]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.ids) != len(self.logprobs):
            raise ValueError("ids and logprobs")
        return self


class _Golden(_Open):
    name: str
    trained: _Likeliest
    base: _Likeliest | None


class _End(_Open):
    id: int
    trained: float
    base: float | None


class _Row(_Open):
    input_ids: list[int]
    places: list[int] = Field(min_length=1)
    start: int
    trained: list[float]
    base: list[float] | None
    end: _End

    @model_validator(mode="after")
    def _fits(self) -> Self:
        values = [self.trained, *([self.base] if self.base is not None else [])]
        if any(len(part) != len(self.places) for part in values):
            raise ValueError("log-probabilities and places")
        if not all(0 < place < len(self.input_ids) for place in self.places):
            raise ValueError("places")
        return self


class _Reference(_Open):
    golden: list[_Golden]
    rows: list[_Row]


def fault(contract: Any, reference: Any) -> str:
    """The part that is of another form, and where in it; empty where both are as they should be."""
    for name, form, value in (("contract", _Contract, contract), ("reference", _Reference, reference)):
        try:
            form.model_validate(value)
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            return f"its {name} has another form{f' ({place})' if place else ''}"
    return ""
