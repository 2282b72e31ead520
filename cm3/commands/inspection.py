"""`cm3 list`, `cm3 info`, `cm3 verify`: what there is, what a folder holds, whether every byte of it is right."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from cm3.commands.output import AsJson, emit, table
from cm3.core.registry import Registry

REGISTRIES = MappingProxyType(
    {
        "readers": "cm3.documents.readers:READERS",
        "objectives": "cm3.sequences.objectives:OBJECTIVES",
        "strategies": "cm3.decode.strategies:STRATEGIES",
        "networks": "vqgan.networks:NETWORKS",
        "quantizers": "vqgan.quantizers:QUANTIZERS",
        "model-formats": "cm3.convert:MODEL_FORMATS",
        "checkpoints": "vqgan.conversion:CHECKPOINT_FORMATS",
        "encoders": "retrieval.encoders:ENCODERS",
        "indexes": "retrieval.index:INDEXES",
        "tasks": "sft.tasks:TASKS",
        "formats": "sft.formats:FORMATS",
    }
)
PRESETS = MappingProxyType({"models": "cm3.model.presets:PRESETS", "tokenizers": "vqgan.presets:PRESETS"})


def list_kind(
    kind: Annotated[str | None, typer.Argument(help="What to list; without it, the kinds there are.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what can be named in run files and options: tasks, strategies, quantizers, presets …"""
    import importlib

    kinds = Registry("kind", {**REGISTRIES, **PRESETS})
    if kind is None:
        emit(kinds.names(), "\n".join(kinds.names()), as_json)
        return
    if kind in REGISTRIES or kind in PRESETS:
        module, _, attribute = (REGISTRIES.get(kind) or PRESETS[kind]).partition(":")
        found = getattr(importlib.import_module(module), attribute)
        names = found.names() if isinstance(found, Registry) else list(found)
        emit(names, "\n".join(names), as_json)
        return
    kinds.get(kind)


def info(path: Annotated[Path, typer.Argument(help="A model folder or any other artefact.")], as_json: AsJson = False) -> None:
    """Show what an artefact folder holds: its kind, size, versions and how it was made."""
    from cm3.core import artefact

    manifest = artefact.read_manifest(path)
    size = sum(entry.size for entry in manifest.files.values())
    value = {
        "path": str(path),
        "kind": manifest.kind,
        "bytes": size,
        "files": {name: entry.size for name, entry in manifest.files.items()},
        "fingerprint": manifest.fingerprint,
        "versions": dict(manifest.versions),
        "provenance": dict(manifest.provenance),
    }
    rows = [{"file": name, "bytes": entry.size} for name, entry in sorted(manifest.files.items())]
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    head = f"{path}: {manifest.kind}, {size:,} bytes in {len(rows)} files"
    emit(value, "\n".join([head, f"made with {versions}", f"fingerprint {manifest.fingerprint}", table(rows)]), as_json)


def verify(path: Annotated[Path, typer.Argument(help="A model folder or any other artefact.")], as_json: AsJson = False) -> None:
    """Check every file of an artefact folder, byte by byte, against its manifest (exit code 4 when something is wrong)."""
    from cm3.core import artefact

    manifest = artefact.verify(path)
    value = {"ok": True, "kind": manifest.kind, "files": len(manifest.files), "fingerprint": manifest.fingerprint}
    emit(value, f"{path}: {manifest.kind}, {len(manifest.files)} files, all as they were written", as_json)
