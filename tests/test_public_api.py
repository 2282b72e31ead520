"""What people import stays as it is: names, parameters, protocols, exit codes."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cm3.core import errors

ROOT = Path(__file__).parent.parent

NAMES = {
    "cm3": ["CM3Config", "CM3ForCausalLM", "CM3Pipeline", "Document", "ImageSegment", "TextSegment", "__version__"],
    "vqgan": [
        "DecodeConfig",
        "EncodeConfig",
        "VQConfig",
        "VQTokenizer",
        "VQTrainConfig",
        "decode_documents",
        "encode_documents",
        "evaluate",
        "from_pretrained",
        "train",
    ],
    "retrieval": ["BuildConfig", "CLIPReranker", "MemoryBank", "build", "evaluate", "load_encoder", "open", "train_encoder"],
    "cm3.quickstart": ["QuickstartConfig", "run_quickstart"],
}

# The parameters that calls from outside use, in their order; "*" takes the rest by keyword. More may follow, with defaults.
SIGNATURES = {
    "cm3:CM3Pipeline.from_pretrained": ["path", "device", "dtype"],
    "cm3:CM3Pipeline.generate": ["prompt", "n", "best_of", "seed"],
    "cm3:CM3Pipeline.caption": ["image"],
    "cm3:CM3Pipeline.ask": ["image", "question"],
    "cm3:CM3Pipeline.edit": ["image", "instruction"],
    "cm3:CM3Pipeline.infill": ["image", "mask", "prompt"],
    "cm3:CM3Pipeline.chat": ["messages"],
    "cm3:CM3Pipeline.stream": ["document"],
    "cm3:CM3Pipeline.save": ["path"],
    "vqgan:from_pretrained": ["path"],
    "vqgan:train": ["config", "out"],
    "vqgan:encode_documents": ["config"],
    "vqgan:decode_documents": ["config"],
    "vqgan:VQTokenizer.encode": ["pixels"],
    "vqgan:VQTokenizer.decode": ["codes"],
    "vqgan:VQTokenizer.preprocess": ["images"],
    "vqgan:VQTokenizer.postprocess": ["pixels"],
    "retrieval:open": ["path"],
    "retrieval:build": ["source", "out", "encoder"],
    "retrieval:train_encoder": ["data", "out", "config"],
    "retrieval:MemoryBank.search": ["text", "image", "k"],
    "cm3.quickstart:run_quickstart": ["config", "announce"],
    "cm3.documents:read_documents": ["source", "format", "report"],
    "cm3.documents:write_documents": ["documents", "out", "format"],
}


@pytest.mark.parametrize("name", NAMES)
def test_a_package_exports_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    assert set(NAMES[name]) <= set(module.__all__)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    for exported in module.__all__:
        assert getattr(module, exported) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("name", NAMES)
def test_type_checkers_see_every_name(name: str) -> None:
    """Names that load when they are first used stand under TYPE_CHECKING too."""
    source = inspect.getsource(importlib.import_module(name))
    seen = source.split("if TYPE_CHECKING:")[1].split("\n\n_")[0].split("\n\n__")[0]
    for exported in importlib.import_module(name).__all__:
        assert exported == "__version__" or re.search(rf"\b{exported}\b", seen), f"{name}.{exported}"


@pytest.mark.parametrize("target", SIGNATURES)
def test_parameters(target: str) -> None:
    module, _, path = target.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    parameters = [p for p in inspect.signature(found).parameters.values() if p.name != "self"]
    wanted = SIGNATURES[target]
    assert [parameter.name for parameter in parameters[: len(wanted)]] == wanted
    for parameter in parameters[len(wanted) :]:
        variable = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert variable or parameter.default is not parameter.empty, f"{target} needs {parameter.name}"
    assert inspect.getdoc(found), f"{target} has no docstring"


def test_the_image_tokenizer_fulfils_its_protocol(toy_model: Path) -> None:
    import torch
    from PIL import Image

    import vqgan
    from cm3.core.protocols import ImageTokenizer

    tokenizer = vqgan.from_pretrained(toy_model / "image_tokenizer")
    assert isinstance(tokenizer, ImageTokenizer)
    assert (tokenizer.codebook_size, tokenizer.grid_shape, tokenizer.image_size) == (64, (3, 3), 24)
    codes = tokenizer.encode(tokenizer.preprocess([Image.new("RGB", (50, 30), "red")]))
    assert (codes.dtype, tuple(codes.shape)) == (torch.int64, (1, 3, 3))
    [picture] = tokenizer.postprocess(tokenizer.decode(codes))
    assert picture.size == (24, 24)


def test_the_memory_fulfils_its_protocol(toy_model: Path) -> None:
    import retrieval
    from cm3.core.protocols import Retriever

    memory = retrieval.open(toy_model / "memory")
    assert isinstance(memory, Retriever)
    assert [found.rank for found in memory.search(text="picture", k=2)] == [0, 1]


def test_transformers_knows_the_model(toy_model: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from cm3 import CM3Config, CM3ForCausalLM

    assert isinstance(AutoConfig.from_pretrained(toy_model), CM3Config)
    assert isinstance(AutoModelForCausalLM.from_pretrained(toy_model), CM3ForCausalLM)


def test_importing_costs_nothing() -> None:
    heavy = "{'torch', 'transformers', 'accelerate', 'tokenizers', 'faiss', 'numpy', 'PIL'}"
    code = f"import sys, cm3, vqgan, retrieval, sft, cm3.quickstart, cm3.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_exit_codes_are_the_documented_ones() -> None:
    page = (ROOT / "docs" / "formats.md").read_text("utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    classes = [thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, errors.CM3Error)]
    assert documented == {0, 130} | {thing.exit_code for thing in classes}
    assert all(re.search(rf"{thing.__name__}\s+{thing.exit_code}\s", errors.__doc__ or "") for thing in classes)
