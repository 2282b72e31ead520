"""Which documents, in which order: the tie between files that name the same documents by number."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def order_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) over `ids` in their order; it differs as soon as one is another, missing, or elsewhere."""
    total = hashlib.sha256()
    for id in ids:
        encoded = id.encode("utf-8", "surrogatepass")
        total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()
