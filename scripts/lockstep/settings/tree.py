"""All settings as one tree. `lockstep.settings.schema` says what each of them means.

The command line overrides the YAML file, which overrides the defaults. `Settings.explicit` remembers which keys
somebody set, and `Settings.config_file` what the file says, so that a later stage can refuse a setting that differs
from what an earlier stage was run with.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from lockstep import paths
from lockstep.settings.fields import Name, Section
from lockstep.settings.schema import (
    Adapter,
    Data,
    Evaluate,
    Lora,
    Merge,
    Model,
    Quantization,
    Sampling,
    Serve,
    Train,
    Ui,
)

# The settings that later stages take from the manifest of a finished one.
INHERITED = ("model", "data", "method", "lora", "quantization")

NULLS = ("null", "none")  # clear an optional setting on the command line


class ConfigFile(BaseModel):
    """What a YAML file of settings said when it was read.

    Attributes:
        path: how `paths.label` writes it.
        values: dotted name → value as it stands in the file, of all settings that it sets, also of those that the
            command line overrides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    values: dict[str, Any]


class Settings(Section):
    """All sections, and where each setting that is not a default was given."""

    run: Name = Field("default", description="folder under outputs/")
    model: Model = Field(default_factory=Model)
    data: Data = Field(default_factory=Data)
    method: Literal["qlora", "lora", "full"] = Field(
        "qlora",
        description="qlora: adapter on a 4-bit base; lora: on an unquantized one; full: all weights, no adapter",
    )
    lora: Lora = Field(default_factory=Lora)
    quantization: Quantization = Field(default_factory=Quantization)
    train: Train = Field(default_factory=Train)
    adapter: Adapter = Field(default_factory=Adapter)
    merge: Merge = Field(default_factory=Merge)
    serve: Serve = Field(default_factory=Serve)
    sampling: Sampling = Field(default_factory=Sampling)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    ui: Ui = Field(default_factory=Ui)

    _explicit: dict[str, str] = PrivateAttr(default_factory=dict)
    _config_file: ConfigFile | None = PrivateAttr(None)

    @property
    def explicit(self) -> dict[str, str]:
        """Dotted names of the settings that somebody gave → where: a file, or the command line."""
        return self._explicit

    @property
    def config_file(self) -> ConfigFile | None:
        """The YAML file, where there is one."""
        return self._config_file

    def with_explicit(self, explicit: Mapping[str, str], config_file: ConfigFile | None = None) -> "Settings":
        """A copy of these settings with another `explicit`, and another `config_file`."""
        settings = self.model_copy()
        settings._explicit, settings._config_file = dict(explicit), config_file
        return settings

    @property
    def run_dir(self) -> Path:
        """The run's folder under outputs/."""
        return paths.run_dir(self.run)

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain JSON values, as manifests keep them."""
        return self.model_dump(mode="json", include=set(names))

    def replace(self, section: str, changes: Mapping[str, Any]) -> "Settings":
        """These settings with other values for some fields of a section."""
        values = self.model_dump(mode="json")
        changed = values | {section: values[section] | changes}
        return Settings.model_validate(changed).with_explicit(self.explicit, self.config_file)

    def inherit(self, config: Mapping[str, Any]) -> "Settings":
        """These settings with the inherited sections as a finished stage was run with them.

        Args:
            config: the `config` of that stage's manifest. `artifacts.lineage` compares it with these settings before.
        """
        inherited = {key: config[key] for key in INHERITED if key in config}
        settings = Settings.model_validate(self.model_dump(mode="json") | inherited)
        return settings.with_explicit(self.explicit, self.config_file)


SECTIONS = [name for name, field in Settings.model_fields.items() if field.default_factory]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lora": {"r": 8}} → {"lora.r": 8}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def leaves() -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, pydantic field) of every setting, in the order of the schema."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            for inner, inner_field in field.annotation.model_fields.items():
                yield f"{name}.{inner}", inner_field
        else:
            yield name, field


def type_name(field: FieldInfo) -> str:
    """The type of a field as help texts show it: `a|b`, `INT`, `FLOAT` …"""
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    text = str(field.annotation)
    names = {"dict": "JSON", "tuple": "LIST", "bool": "BOOL", "int": "INT", "float": "FLOAT", "date": "YYYY-MM-DD"}
    return next((shown for name, shown in names.items() if name in text), "TEXT")
