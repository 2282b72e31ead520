"""Run files: TOML plus `key.path=value` overrides, checked by a pydantic model; unknown keys are errors.

A training command reads `RUN.toml`, applies the overrides of its command line, and writes the resolved configuration
as `run.json` beside its result, so that every result says how it was made.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from cm3.core.artefact import write_json
from cm3.core.errors import InputError, UsageError
from cm3.core.registry import nearest

_SHOWN, _LONGEST_VALUE = 4, 80  # problems named at once, characters of a wrong value


class RunConfig(BaseModel):
    """Parent of every configuration: immutable, no unknown keys, defaults checked like given values."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Python counts True as 1; who writes `steps = true` means something else."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"expected a number, got {str(value).lower()}")
        return value

    def _refuse_idle(self, choice: str, idle: Mapping[str, Collection[str]]) -> None:
        """For validators: raise `ValueError` for settings that change nothing beside the value of `choice`; idle: value → those.

        One at its default is no complaint: a resolved configuration names them all.
        """
        value, fields = getattr(self, choice), type(self).model_fields
        idle_here = {name: getattr(self, name) for name in idle.get(value, ())}
        changed = ", ".join(f"{name}={given}" for name, given in idle_here.items() if given != fields[name].default)
        if changed:
            raise ValueError(f"{changed} would change nothing beside {choice}={value}; leave out one or the other")


Config = TypeVar("Config", bound=RunConfig)


def load_run(model: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (TOML; None: defaults only), apply `overrides` ("train.steps=100"), and validate as `model`.

    Raises `InputError` for a file that is missing or not TOML, `UsageError` for an unknown key (with the nearest known
    one), a wrong type or value, or an override without "=".
    """
    return validate(model, read_run(path, overrides), str(path) if path is not None else "")


def read_run(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The values of `load_run` before they are validated: for who loads a model that takes seconds only when there is a file.

    Raises `InputError` for a file that is missing or not TOML, `UsageError` for an override without "=".
    """
    values = _read_toml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    return values


def validate(model: type[Config], values: Mapping[str, Any], where: str = "") -> Config:
    """`values` as a `model`; `where` says in messages whose values they are.

    Raises `UsageError` for an unknown key (with the nearest known one), a wrong type or value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise UsageError(prefix + "; ".join(_explain(model, problem) for problem in error.errors()[:_SHOWN])) from None


def write_resolved(config: RunConfig, folder: Path) -> Path:
    """Write the whole configuration, defaults included, as `folder/run.json`; returns that path."""
    target = folder / "run.json"
    write_json(target, config.model_dump(mode="json"))
    return target


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"run file {path} does not exist; check the path") from None
    except OSError as error:
        raise InputError(f"run file {path} cannot be read: {error.strerror}; give a TOML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"run file {path} cannot be read: byte {error.start} is not UTF-8; give a TOML file") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"run file {path} is not valid TOML: {error}; correct it") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"override {override!r} has no '='; write it as key.path=value")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UsageError(f"override {override!r}: {parent!r} is a value, not a section")
    values[leaf] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    """TOML's reading of `text`, or the text itself: `lr=1e-3` is a number, `out=runs/a` a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        return f"unknown key {key!r}; {nearest(location[-1], known)}"
    if problem["type"] == "missing":
        return f"key {key!r} is required; add it to the run file or pass {key}=VALUE"
    where = f"key {key!r}: " if key else ""
    if problem["type"] == "value_error":  # a sentence of ours, which says what was given
        return where + problem["msg"].removeprefix("Value error, ")
    message = "expected a section" if problem["type"] == "model_type" else problem["msg"].replace("Input should be", "expected")
    shown = repr(problem["input"])
    return f"{where}{message}, got {shown if len(shown) <= _LONGEST_VALUE else shown[:_LONGEST_VALUE] + '…'}"


def _keys_at(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for parent in parents:
        field = model.model_fields.get(parent)
        if field is None:
            return []
        candidates = [field.annotation, *get_args(field.annotation)]
        nested = [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
