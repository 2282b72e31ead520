"""The architecture as a test: who may import whom, no cycles, file and function sizes, forbidden names and calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("cm3", "vqgan", "retrieval", "sft")

CORE = {"cm3.core"}
ALL_STAGES = {
    "cm3.core",
    "cm3.documents",
    "cm3.scenes",
    "cm3.metrics",
    "cm3.train",
    "vqgan",
    "retrieval",
    "cm3.tokens",
    "cm3.sequences",
    "cm3.model",
    "cm3.pretrain",
    "cm3.decode",
    "cm3.convert",
}
JOINING = {"cm3.model_folder", "cm3.gaps", "cm3.neighbors", "cm3.choosing"}
PIPELINE = JOINING | {"cm3.pipeline", "cm3.tokenize", "cm3.model_conversion"}

# unit → what it may import at module level; a unit is the longest prefix of a module's name that stands here
ALLOWED: dict[str, set[str]] = {
    "cm3.core": set(),
    "cm3.documents": CORE,
    "cm3.scenes": CORE | {"cm3.documents"},
    "cm3.metrics": CORE,
    "cm3.train": CORE,
    "vqgan": CORE | {"cm3.documents", "cm3.metrics", "cm3.train"},
    "retrieval": CORE | {"cm3.documents", "cm3.metrics", "cm3.train"},
    "cm3.tokens": CORE | {"cm3.documents"},
    "cm3.sequences": CORE | {"cm3.documents", "cm3.tokens"},
    "cm3.model": CORE,
    "cm3.pretrain": CORE | {"cm3.documents", "cm3.tokens", "cm3.sequences", "cm3.model", "cm3.train"},
    "cm3.decode": CORE | {"cm3.documents", "cm3.tokens", "cm3.model"},
    "cm3.convert": CORE | {"cm3.model", "cm3.tokens"},
    "cm3.model_folder": ALL_STAGES,
    "cm3.model_conversion": ALL_STAGES | {"cm3.model_folder"},
    "cm3.tokenize": CORE | {"cm3.documents", "cm3.tokens", "cm3.sequences", "cm3.train", "vqgan"},  # its processes start soon
    "cm3.gaps": ALL_STAGES,
    "cm3.neighbors": ALL_STAGES,
    "cm3.choosing": ALL_STAGES,
    "cm3.pipeline": ALL_STAGES | JOINING,
    "cm3.samples": ALL_STAGES | {"cm3.tokenize"},
    "sft": ALL_STAGES | PIPELINE,
    "cm3.quickstart": ALL_STAGES | PIPELINE | {"sft"},
    "cm3.commands": {"cm3.core"},  # everything else inside the functions, so that help costs nothing
    "cm3.cli": {"cm3.core", "cm3.commands"},
    "cm3": set(),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 6
FORBIDDEN_FILE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}


def unit_of(module: str) -> str:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in ALLOWED:
            return prefix
    raise AssertionError(f"{module} belongs to no unit of the table; add it")


def module_level_imports(tree: ast.Module) -> Iterator[str]:
    """Names imported when the module is imported; TYPE_CHECKING blocks and function bodies do not count."""
    pending: list[ast.stmt] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(node.test):
                pending += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            pending += [*node.body, *node.orelse, *node.finalbody, *(line for handler in node.handlers for line in handler.body)]
        elif isinstance(node, ast.With | ast.ClassDef):
            pending += node.body


def own_imports(module: str) -> set[str]:
    """The project's modules that `module` imports at module level, as full module names."""
    found = set()
    for name in module_level_imports(TREES[module]):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            if (prefix := ".".join(parts[:length])) in FILES:
                found.add(prefix)
                break
    return found


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_follow_the_table(module: str) -> None:
    unit = unit_of(module)
    foreign = {imported for imported in own_imports(module) if unit_of(imported) not in ALLOWED[unit] | {unit}}
    assert not foreign, f"{module} ({unit}) may not import {sorted(foreign)}"


def test_no_import_cycle() -> None:
    state: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == "done":
            return
        assert state.get(module) != "open", f"import cycle: {' → '.join((*path[path.index(module) :], module))}"
        state[module] = "open"
        for imported in sorted(own_imports(module) - {module}):
            visit(imported, (*path, module))
        state[module] = "done"

    for module in sorted(FILES):
        visit(module, ())


def test_units_form_no_cycle() -> None:
    remaining = {unit: set(allowed) for unit, allowed in ALLOWED.items()}
    while remaining:
        free = [unit for unit, allowed in remaining.items() if not allowed & set(remaining)]
        assert free, f"the table itself has a cycle among {sorted(remaining)}"
        for unit in free:
            del remaining[unit]


@pytest.mark.parametrize("module", sorted(FILES))
def test_file_shape(module: str) -> None:
    path, tree = FILES[module], TREES[module]
    assert path.stem not in FORBIDDEN_FILE_NAMES, f"{path.name}: name the idea, not the drawer"
    assert ast.get_docstring(tree), f"{module} has no docstring"
    assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{module}.{node.name} has {length} lines"


FORBIDDEN_CALLS = {
    "pickle.load": "no pickle",
    "pickle.loads": "no pickle",
    "eval": "no eval",
    "exec": "no exec",
    "yaml.load": "no yaml.load",
}


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_unsafe_loading(module: str) -> None:
    for name, call in calls(TREES[module]):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in FORBIDDEN_CALLS, f"{module}: {FORBIDDEN_CALLS[name]}"
        assert not name.endswith((".extract", ".extractall")), f"{module}: never extract an archive"
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", f"{module}: torch.load needs weights_only=True"
        assert keywords.get("allow_pickle") != "True", f"{module}: np.load(allow_pickle=True)"
        assert keywords.get("trust_remote_code") != "True", f"{module}: trust_remote_code"


@pytest.mark.parametrize("module", sorted(FILES))
def test_no_torchvision_and_no_global_randomness(module: str) -> None:
    source = FILES[module].read_text("utf-8")
    imported = set(module_level_imports(TREES[module]))
    assert not any(name.split(".")[0] == "torchvision" for name in imported)
    # the training loop alone seeds the global generators, anew in every step, for libraries that draw from them
    assert "np.random.seed" not in source or module == "cm3.train.state"
