"""The embedded default data: a procedural world of small scenes with exact answers and a scorer that reads pixels.

Everything is a pure function of a scene or of an explicit generator. `write_world` writes the world in the same public
formats that users bring; nothing later in the project knows that a data set came from here, except the scorer.
"""

from cm3.scenes.dataset import WorldSummary, edit_document, pair_document, vqa_document, write_world
from cm3.scenes.edits import EDIT_KINDS, Edit, sample_edit
from cm3.scenes.language import CAPTION_KINDS, Caption, caption
from cm3.scenes.parse import Statements, parse_caption
from cm3.scenes.questions import QUESTION_KINDS, Question, questions
from cm3.scenes.read import read_scene, read_scenes
from cm3.scenes.render import Box, boxes, edges, render, segmentation
from cm3.scenes.sampling import sample_scene
from cm3.scenes.score import (
    CaptionScore,
    SceneScore,
    StatementScore,
    score_answer,
    score_caption,
    score_scene,
    score_statement,
)
from cm3.scenes.split import HELD_OUT_PLACES, HELD_OUT_RELATIONS, held_out_reasons, is_held_out
from cm3.scenes.world import Scene, SceneObject, WorldConfig

__all__ = [
    "CAPTION_KINDS",
    "EDIT_KINDS",
    "HELD_OUT_PLACES",
    "HELD_OUT_RELATIONS",
    "QUESTION_KINDS",
    "Box",
    "Caption",
    "CaptionScore",
    "Edit",
    "Question",
    "Scene",
    "SceneObject",
    "SceneScore",
    "StatementScore",
    "Statements",
    "WorldConfig",
    "WorldSummary",
    "boxes",
    "caption",
    "edges",
    "edit_document",
    "held_out_reasons",
    "is_held_out",
    "pair_document",
    "parse_caption",
    "questions",
    "read_scene",
    "read_scenes",
    "render",
    "sample_edit",
    "sample_scene",
    "score_answer",
    "score_caption",
    "score_scene",
    "score_statement",
    "segmentation",
    "vqa_document",
    "write_world",
]
