"""The records of the embedded world: small scenes of coloured shapes on a 3×3 grid, and what the words for them are.

A `Scene` is what a picture shows: one to a few `SceneObject`s, each alone in its cell, on a plain background. Scenes are
immutable and compare by what they show: objects stand in reading order, and a shift of some pixels or the texture of the
background (both off by default) does not make another scene. `WorldConfig` says how scenes are drawn and rendered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator, model_validator

from cm3.core.errors import InputError
from cm3.core.runfile import RunConfig

GRID = 3
SHAPES = ("circle", "square", "triangle", "diamond")
SIZES = ("small", "large")
COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 39, 48),
    "green": (44, 160, 66),
    "blue": (44, 92, 214),
    "yellow": (246, 208, 46),
    "purple": (140, 62, 180),
    "orange": (240, 128, 28),
}
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (248, 248, 248),
    "black": (24, 24, 28),
    "gray": (136, 140, 146),
    "pink": (248, 190, 208),
}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
POSITIONS = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)  # always two words: one a row, one a column
RELATIONS = ("left of", "right of", "above", "below")

Cell = tuple[int, int]


def position_name(cell: Cell) -> str:
    """The words for a (row, column) cell, one of `POSITIONS`."""
    return POSITIONS[cell[0] * GRID + cell[1]]


def position_cell(name: str) -> Cell:
    """The (row, column) cell that `name`, one of `POSITIONS`, stands for."""
    return divmod(POSITIONS.index(name), GRID)


def position_phrase(cell: Cell) -> str:
    """The cell as it stands in a sentence: "at the top left", "at the middle center"."""
    return f"at the {position_name(cell)}"


@dataclass(frozen=True, order=True)
class SceneObject:
    """One shape in one cell. `cell` is (row, column), each in [0, 3); `offset` is a shift (down, right) in pixels."""

    cell: Cell
    shape: str
    color: str
    size: str
    offset: tuple[int, int] = field(default=(0, 0), compare=False)

    def __post_init__(self) -> None:
        words = (("shape", self.shape, SHAPES), ("color", self.color, COLORS), ("size", self.size, SIZES))
        for name, value, known in words:
            if value not in known:
                raise InputError(f"scene object has {name} {value!r}; expected one of {', '.join(known)}")
        if len(self.cell) != 2 or not all(index in range(GRID) for index in self.cell):
            raise InputError(f"scene object has cell {self.cell!r}; expected (row, column), each from 0 to {GRID - 1}")

    @property
    def position(self) -> str:
        """The words for the object's cell, one of `POSITIONS`."""
        return position_name(self.cell)

    def describe(self) -> str:
        """Size, color and shape: "large red circle"."""
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Objects (kept in reading order, at most one per cell) on a background; `texture` seeds the background's texture."""

    objects: tuple[SceneObject, ...]
    background: str
    texture: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise InputError(f"scene has background {self.background!r}; expected one of {', '.join(BACKGROUNDS)}")
        if len({item.cell for item in self.objects}) < len(self.objects):
            raise InputError("scene has two objects in one cell; expected at most one")
        object.__setattr__(self, "objects", tuple(sorted(self.objects)))

    def describe(self) -> str:
        """The whole scene in one sentence, objects in reading order; states everything that `==` compares."""
        objects = [f"{with_article(item.describe())} {position_phrase(item.cell)}" for item in self.objects]
        return f"{join_words(objects) or 'nothing'} on a {self.background} background"

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; `from_json` gives the same scene back, shifts and texture included."""
        objects = [
            {"shape": item.shape, "color": item.color, "size": item.size, "cell": list(item.cell)}
            | ({"offset": list(item.offset)} if item.offset != (0, 0) else {})
            for item in self.objects
        ]
        texture = {"texture": self.texture} if self.texture else {}
        return {"objects": objects, "background": self.background, **texture}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Scene:
        """Read what `to_json` wrote; raises `InputError` if a field is missing or has no meaning in this world."""
        try:
            objects = tuple(_object_from_json(item) for item in record["objects"])
            return Scene(objects, record["background"], int(record.get("texture", 0)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"scene record is not usable: {type(error).__name__} {error}") from None


def _object_from_json(record: Mapping[str, Any]) -> SceneObject:
    row, column = record["cell"]
    down, right = record.get("offset", (0, 0))
    return SceneObject((row, column), record["shape"], record["color"], record["size"], (down, right))


def holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether `first` stands in `relation` (one of `RELATIONS`) to `second`, judged by rows and columns alone."""
    if relation in ("left of", "right of"):
        step = second.cell[1] - first.cell[1]
    else:
        step = second.cell[0] - first.cell[0]
    return step > 0 if relation in ("left of", "above") else step < 0


def with_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join_words(phrases: list[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return " and ".join(filter(None, [", ".join(phrases[:-1]), *phrases[-1:]]))


class WorldConfig(RunConfig):
    """How scenes are drawn and rendered. The default has no shifts and no texture: patches repeat exactly.

    image_size     pixels on a side, a multiple of 24 (a cell is a third of it)
    max_objects    most objects in a scene; the fewest is one
    object_weights how often scenes have 1, 2, … objects (any positive scale); empty: equally often
    jitter         largest shift in pixels of an object from the middle of its cell; it never leaves the cell
    texture        0 plain background, 1 a soft gradient, 2 gradient and noise
    """

    image_size: int = Field(default=48, ge=24, le=1536)
    max_objects: int = Field(default=3, ge=1, le=GRID * GRID)
    object_weights: tuple[float, ...] = ()
    jitter: int = Field(default=0, ge=0)
    texture: int = Field(default=0, ge=0, le=2)

    @property
    def cell_size(self) -> int:
        """Pixels on a side of one cell."""
        return self.image_size // GRID

    @field_validator("image_size")
    @classmethod
    def _whole_patches(cls, value: int) -> int:
        if value % 24:
            raise ValueError(f"must be a multiple of 24, so that cells hold whole 8-pixel patches; try {value // 24 * 24 + 24}")
        return value

    @model_validator(mode="after")
    def _one_weight_per_count(self) -> WorldConfig:
        weights = self.object_weights
        if weights and (len(weights) != self.max_objects or min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"object_weights must be {self.max_objects} weights (one per object count), some positive")
        return self
