"""Documents: what enters and leaves cm3. Records, image decoding, readers and writers of the formats people have.

    read_documents(source) → Document … → write_documents(documents, out)

Formats: `readers/` (one file each). Every refused record has a reason (`RejectReason`) and is counted (`ReadReport`).
"""

from cm3.documents.document import Document, ImageSegment, Neighbor, Segment, TextSegment
from cm3.documents.images import DecodeLimits, check_header, decode_image
from cm3.documents.joining import JOINERS, join_documents
from cm3.documents.readers import READERS, detect_format, read_documents
from cm3.documents.reasons import ImageError, RecordError, RejectReason
from cm3.documents.records import ReadOptions
from cm3.documents.report import Problem, ReadReport
from cm3.documents.split import is_held_out, split_documents
from cm3.documents.writers import WRITERS, write_documents

__all__ = [
    "JOINERS",
    "READERS",
    "WRITERS",
    "DecodeLimits",
    "Document",
    "ImageError",
    "ImageSegment",
    "Neighbor",
    "Problem",
    "ReadOptions",
    "ReadReport",
    "RecordError",
    "RejectReason",
    "Segment",
    "TextSegment",
    "check_header",
    "decode_image",
    "detect_format",
    "is_held_out",
    "join_documents",
    "read_documents",
    "split_documents",
    "write_documents",
]
