"""`cm3 chat`: a dialog with a model, line by line, in texts and pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.commands.drawing import Guidance, given
from cm3.commands.output import AsJson, emit, say, warnings_said, write_picture
from cm3.core.errors import CM3Error
from cm3.core.storage import require_writable

if TYPE_CHECKING:
    from cm3.pipeline import CM3Pipeline

HELP = "Say something. /image FILE shows a picture with it, /new begins again, /quit (or end of input) ends."


def chat(
    model: Annotated[Path, typer.Argument(help="A model folder (`cm3 quickstart` writes one).")],
    temperature: Annotated[float | None, typer.Option(help="Above 0; 0 takes the likeliest token, always.")] = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed and the same words give the same dialog.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the pictures of the answers.")] = Path("pictures"),
    as_json: AsJson = False,
) -> None:
    """Talk with a model, in words and pictures.

    One line is one message. /image FILE shows a picture with the next message, /new begins again, /quit ends. Pictures of the
    answers are written to --out and named. With --json every answer is one line, {"text"} or {"path", "codes"}.
    """
    from cm3.core.runfile import validate
    from cm3.decode.options import DecodingOptions
    from cm3.pipeline import CM3Pipeline

    options = given({"temperature": temperature, "guidance": guidance})
    chosen = validate(DecodingOptions, options, "decoding")
    chosen.make_sampling(), chosen.make_strategy()  # values out of range are refused now, not at every line
    require_writable(out)
    dialog = _Dialog(CM3Pipeline.from_pretrained(model), seed, options, out)
    say(HELP)
    with warnings_said():
        for line in _lines():
            try:
                answer = dialog.take(line)
            except CM3Error as error:
                say(f"cm3: {error}")  # what was said before stands
                continue
            if answer is not None:
                emit(answer, answer.get("text", answer.get("path", "")), as_json)


def _lines() -> Iterator[str]:
    """What is typed, or piped in, until /quit."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            yield line.strip()


class _Dialog:
    """The messages so far, and the pictures that wait for words."""

    def __init__(self, pipe: CM3Pipeline, seed: int, options: dict[str, Any], out: Path) -> None:
        self._pipe, self._seed, self._options, self._out = pipe, seed, options, out
        self._messages: list[dict[str, Any]] = []
        self._shown: list[dict[str, Any]] = []

    def take(self, line: str) -> dict[str, Any] | None:
        """One line of the user → the answer as JSON; None for a command that has none."""
        if line == "/new":
            self._messages, self._shown = [], []
            return None
        if line.startswith("/image "):
            from cm3.documents.images import decode_image

            self._shown.append({"type": "image", "image": decode_image(Path(line.removeprefix("/image ").strip()))})
            return None
        if line.startswith("/"):
            say(HELP)
            return None
        asked = {"role": "user", "content": [*self._shown, {"type": "text", "text": line}]}
        turn = len(self._messages) // 2
        answer = self._pipe.chat([*self._messages, asked], seed=self._seed + turn, **self._options)
        self._messages += [asked, answer]
        self._shown = []
        return self._said(answer, turn)

    def _said(self, answer: dict[str, Any], turn: int) -> dict[str, Any]:
        for item in answer["content"]:
            if item["type"] == "image":
                path = write_picture(item["image"], self._out / f"chat-{self._seed}-{turn}.png")
                return {"path": path, "codes": item["codes"].tolist()}
            return {"text": item["text"]}
        self._messages.pop()  # nothing was said, so there is nothing to go on from
        self._messages.pop()
        return {"text": ""}
