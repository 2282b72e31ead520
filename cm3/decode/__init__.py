"""Decoding: prompts to texts and pictures, by any strategy, in one cached and batched loop."""

from cm3.decode.engine import DecodingEngine, Emission
from cm3.decode.grammar import FreeAnswer, ImageAnswer, InfillAnswer, PairAnswer, TextAnswer
from cm3.decode.likelihood import answer_log_prob, sequence_log_prob
from cm3.decode.pieces import PieceAssembler, pieces_of
from cm3.decode.prompts import Prompt, continuation, document_start, fill, infilling, unconditional_image
from cm3.decode.records import Done, Generation, ImagePiece, Piece, Request, TextPiece, codes_of
from cm3.decode.rerank import Ranking, rank, rank_by_reranker
from cm3.decode.sampling import GREEDY, Sampling
from cm3.decode.strategies import STRATEGIES

__all__ = [
    "GREEDY",
    "STRATEGIES",
    "DecodingEngine",
    "Done",
    "Emission",
    "FreeAnswer",
    "Generation",
    "ImageAnswer",
    "ImagePiece",
    "InfillAnswer",
    "PairAnswer",
    "Piece",
    "PieceAssembler",
    "Prompt",
    "Ranking",
    "Request",
    "Sampling",
    "TextAnswer",
    "TextPiece",
    "answer_log_prob",
    "codes_of",
    "continuation",
    "document_start",
    "fill",
    "infilling",
    "pieces_of",
    "rank",
    "rank_by_reranker",
    "sequence_log_prob",
    "unconditional_image",
]
