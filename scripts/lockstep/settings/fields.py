"""Types that settings are made of: names, lists, maps and file paths, each with its own checks."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

from lockstep import paths

# The layouts' own keys, which `data.columns` gives other names.
COLUMNS = (
    "instruction", "input", "output", "history", "system", "prompt", "completion", "messages", "conversations",
    "tools", "role", "content", "from", "value", "tool_calls", "reasoning_content", "weight",
)  # fmt: skip


class Section(BaseModel):
    """A section of the settings: unknown keys are errors, and values do not change once they are read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class IsFilePath:
    """Marks the settings that hold file paths, which the command line reads relative to where the user is."""


def holds_file_paths(field: FieldInfo) -> bool:
    """Whether a setting is a file path or a list of them."""
    return IsFilePath in field.metadata or _is_marked(field.annotation)


def _is_marked(annotation: Any) -> bool:
    return any(part is IsFilePath or _is_marked(part) for part in get_args(annotation))


def _split_at_commas(value: Any) -> Any:
    if value is None:
        return ()
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _normalised_path(value: str) -> str:
    """Spell a file path in one way only, so that equal files never look like changed settings."""
    if not value:
        raise ValueError("must not be empty; null clears it")
    path = Path(os.path.normpath(paths.ROOT / value))
    return path.relative_to(paths.ROOT).as_posix() if path.is_relative_to(paths.ROOT) else str(path)


def _file_list(value: Any) -> Any:
    """A single name, comma-separated names, or a list. A file whose own name has a comma is a single name."""
    return [value] if isinstance(value, str) and (paths.ROOT / value).exists() else _split_at_commas(value)


def _template(value: str) -> str:
    return _normalised_path(value) if value.endswith(".jinja") else value


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must not be 0")
    return value


def _root_path(value: str) -> str:
    """A path at which a proxy shows something, or the URL of one: without the slash at its end."""
    if value.strip("/") and not re.fullmatch(r"(https?://[\w.\[\]:-]+)?(/[\w.~%-]+)*/?", value, re.ASCII):
        raise ValueError("must be a path such as /chat, or the page's whole URL, such as https://example.org/chat")
    return value.rstrip("/")


def _origin(value: str) -> str:
    """The origin of web pages, as browsers write it: scheme, host, and a port that is not the scheme's own."""
    if value in ("*", "null"):
        return value
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([\w.-]+|\[[0-9a-f:.]+\])(:\d+)?/?", value.lower(), re.ASCII)
    if not match:
        raise ValueError("must be a page's scheme, host and port, such as http://localhost:5173, or *")
    scheme, host, port = match.groups()
    return f"{scheme}://{host}{'' if (scheme, port) in (('http', ':80'), ('https', ':443')) else port or ''}"


def _json_object(value: Any) -> Any:
    """A map, which the command line writes as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError('must be a JSON object, such as {"adam_beta2": 0.95}') from error
    return {} if value is None else value


def _is_json(value: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"must hold what JSON knows: {error}") from error
    return value


def _columns(value: Any) -> Any:
    """ours=theirs, one or several; in YAML also a map of our names to theirs."""
    if isinstance(value, dict):
        if not all(isinstance(theirs, str) for theirs in value.values()):
            raise ValueError("a map of columns gives each of our names another name, which is text")
        return [f"{ours}={theirs}" for ours, theirs in value.items()]
    return _split_at_commas(value)


def _column(value: str) -> str:
    ours, _, theirs = value.partition("=")
    if ours not in COLUMNS or not theirs:
        raise ValueError(f"must be ours=theirs, such as instruction=question, with ours one of {', '.join(COLUMNS)}")
    return value


CommaList = BeforeValidator(_split_at_commas)
Name = Annotated[str, AfterValidator(paths.check_name)]
NameList = Annotated[tuple[Name, ...], CommaList]
StringList = Annotated[tuple[str, ...], CommaList]
FilePath = Annotated[str, AfterValidator(_normalised_path), IsFilePath]
FilePaths = Annotated[tuple[FilePath, ...], BeforeValidator(_file_list)]
TemplateName = Annotated[str, AfterValidator(_template)]  # a name, or the path of a .jinja file
ColumnList = Annotated[tuple[Annotated[str, AfterValidator(_column)], ...], BeforeValidator(_columns)]
OriginList = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], CommaList]
RootPath = Annotated[str, AfterValidator(_root_path)]
NotZero = AfterValidator(_not_zero)
JsonMap = Annotated[dict[str, Any], BeforeValidator(_json_object), AfterValidator(_is_json)]
