"""How pictures are drawn and chosen, as options that several commands share: declared once, in `Drawing`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import Signature, signature
from typing import Annotated, Any

import typer

from cm3.core.errors import UsageError

Count = Annotated[int, typer.Option("-n", min=1, help="How many pictures.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale; 1 is none.")]
Temperature = Annotated[float | None, typer.Option(help="Above 0; 0 takes the most likely code, always.")]
_GIVEN = ("rerank", "strategy", "guidance", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "window")


@dataclass(frozen=True)
class Drawing:
    """The options of a command that draws pictures; those that were not given are None."""

    best_of: Annotated[int, typer.Option(min=1, help="Draw so many candidates for each and keep what the judge likes best.")] = 1
    rerank: Annotated[
        str | None, typer.Option(help="Who judges candidates: encoder (CLIP, the default), or likelihood (the model itself).")
    ] = None
    strategy: Annotated[str | None, typer.Option(help="Decoding strategy (`cm3 list strategies`).")] = None
    guidance: Guidance = None
    temperature: Temperature = None
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest codes that make up this probability.")] = None
    top_k: Annotated[int | None, typer.Option(help="Keep this many of the likeliest codes; 0 keeps all.")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Keep codes at least this share as likely as the likeliest; 0 keeps all.")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1, codes that were drawn before become less likely.")
    ] = None
    window: Annotated[
        int | None, typer.Option(min=1, help="Try so many tokens of a picture per step: fewer steps, the same picture.")
    ] = None
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the steps first: a minute of waiting, then faster; for many pictures.")
    ] = False
    option: Annotated[list[str] | None, typer.Option("--option", help="A field of the strategy, as name=value; repeatable.")] = (
        None
    )

    def options(self) -> dict[str, Any]:
        """The fields of `DecodingOptions` that were given, and who chooses; the others keep the pipeline's defaults."""
        chosen = given({name: getattr(self, name) for name in _GIVEN})
        if self.option:
            chosen["strategy_options"] = dict(_field(text) for text in self.option)
        return {**chosen, "best_of": self.best_of}


def takes_drawing(command: Callable[..., None]) -> Callable[..., None]:
    """`command(…, drawing, …)` as a command that has the options of `Drawing` in place of that parameter."""
    shared = signature(Drawing, eval_str=True).parameters

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{"drawing": Drawing(**{name: values.pop(name) for name in shared}), **values})

    parameters = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        parameters += [parameter] if name != "drawing" else list(shared.values())
    parameters = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; those that were not keep the pipeline's defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--option {text!r} has no '='; write it as name=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
