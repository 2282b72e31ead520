"""Reading captions back: from words to what they state about a scene.

Any text goes in, a model's ravings included. Known words are gathered, clause by clause, into stated objects, relations, a
background and a total; words outside the language make the statements not `clean`, as do attributes without an object and
contradictions. Nothing here looks at a scene; `cm3.scenes.score` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from cm3.scenes.language import NUMBERS
from cm3.scenes.world import BACKGROUNDS, COLORS, POSITIONS, RELATIONS, SHAPES, SIZES, Cell, SceneObject, position_cell

_FILLERS = frozenset({"a", "an", "the", "at", "in", "on", "to", "with", "background", "nothing"})
_KINDS = {
    "relation": RELATIONS,
    "position": sorted(POSITIONS, key=len, reverse=True),
    "size": SIZES,
    "color": tuple(COLORS),
    "background": tuple(BACKGROUNDS),
    "noun": (*SHAPES, "object"),
    "number": NUMBERS,
}
_PATTERN = re.compile(
    "|".join(rf"(?P<{kind}>\b(?:{'|'.join(words)}){'s?' if kind == 'noun' else ''}\b)" for kind, words in _KINDS.items())
    + r"|(?P<word>[\w'-]+)|(?P<stop>[^\w\s])"
)


@dataclass(frozen=True)
class StatedObject:
    """What a phrase says about an object; None where it says nothing. `count`: exactly so many such; None: at least one."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None
    cell: Cell | None = None
    count: int | None = None

    def fits(self, item: SceneObject) -> bool:
        """Whether every stated attribute is the object's."""
        return all(value is None or value == getattr(item, name) for name, value in self.attributes().items())

    def agreement(self, item: SceneObject) -> int:
        """How many of the four attributes are stated and are the object's."""
        return sum(value is not None and value == getattr(item, name) for name, value in self.attributes().items())

    def attributes(self) -> dict[str, str | Cell | None]:
        """The four attributes by the names they have in `SceneObject`."""
        return {"shape": self.shape, "color": self.color, "size": self.size, "cell": self.cell}


@dataclass(frozen=True)
class Statements:
    """What a text states. `relations` are (index of object, relation, index of object).

    clean   only words of the language, every attribute with its object, no contradiction
    closed  the text lists everything: it names the background (or says "nothing") and relates no objects to each other, so
            an object that it does not name must not be there
    """

    objects: tuple[StatedObject, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    total: int | None = None
    clean: bool = True

    @property
    def closed(self) -> bool:
        return self.background is not None and not self.relations

    @property
    def complete(self) -> bool:
        """Whether the text determines a scene: closed, clean, and every object with all four attributes."""
        whole = all(None not in stated.attributes().values() for stated in self.objects)
        return self.clean and self.closed and self.total is None and whole


def parse_caption(text: str) -> Statements:
    """What `text` states; never fails, see `Statements.clean`."""
    reader = _Reader()
    for kind, word in _words(text.lower()):
        reader.read(kind, word)
    return reader.finish()


def _words(text: str) -> Iterator[tuple[str, str]]:
    for match in _PATTERN.finditer(text):
        kind, word = str(match.lastgroup), match.group()
        yield ("stop", word) if word == "and" else (kind, word)


@dataclass
class _Reader:
    """Gathers attributes until a noun comes; a position after a noun still belongs to it."""

    objects: list[StatedObject] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    background: str | None = None
    total: int | None = None
    clean: bool = True
    pending: dict[str, str] = field(default_factory=dict)
    relation: str | None = None
    fresh: bool = False  # the last object stands in this clause

    def read(self, kind: str, word: str) -> None:
        if kind == "stop":
            self._end_clause()
        elif kind == "noun":
            self._finish_object(word.removesuffix("s"))
        elif kind == "relation":
            self.clean &= self.fresh and self.relation is None
            self.relation = word if self.fresh else None
        elif kind == "background":
            self.clean &= self.background in (None, word)
            self.background = self.background or word
        elif kind == "position" and self.fresh and not self.pending and self.objects[-1].cell is None:
            last = self.objects.pop()
            self.objects.append(StatedObject(last.shape, last.color, last.size, position_cell(word), last.count))
        elif kind == "word":
            self.clean &= word in _FILLERS
        else:
            self.clean &= kind not in self.pending
            self.pending[kind] = word

    def finish(self) -> Statements:
        self._end_clause()
        return Statements(tuple(self.objects), tuple(self.relations), self.background, self.total, self.clean)

    def _end_clause(self) -> None:
        self.clean &= not self.pending and self.relation is None
        self.pending, self.relation, self.fresh = {}, None, False

    def _finish_object(self, noun: str) -> None:
        words, self.pending = self.pending, {}
        count = NUMBERS.index(words["number"]) if "number" in words else None
        if noun == "object" and set(words) == {"number"}:
            self.clean &= self.total in (None, count)
            self.total, self.fresh = count, False
            return
        cell = position_cell(words["position"]) if "position" in words else None
        shape = None if noun == "object" else noun
        self.objects.append(StatedObject(shape, words.get("color"), words.get("size"), cell, count))
        if self.relation is not None:
            self.relations.append((len(self.objects) - 2, self.relation, len(self.objects) - 1))
        self.relation, self.fresh = None, True
