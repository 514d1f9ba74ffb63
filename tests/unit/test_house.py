"""The house: modules that can be read in one sitting, and packages that say what passes through them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = sorted(path.parent for name in ("tlray", "serve_app") for path in (ROOT / name).rglob("__init__.py"))
MAX_LINES = 350


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_says_what_it_is_for_and_no_module_is_too_long(package):
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    lengths = {path.name: len(path.read_text().splitlines()) for path in package.glob("*.py")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "tests/unit").glob("*/**/test_*.py")), ids=lambda path: path.stem)
def test_tests_lie_where_what_they_test_lies(path):
    parts = path.relative_to(ROOT / "tests/unit").parent.parts
    assert any((ROOT / start).joinpath(*parts).is_dir() for start in ("", "tlray"))


def _modules() -> dict[str, list[Path]]:
    """The modules of the house by their own names, without their packages."""
    found: dict[str, list[Path]] = {}
    for name in ("tlray", "serve_app"):
        for path in (ROOT / name).rglob("*.py"):
            found.setdefault(path.stem, []).append(path)
    return found


MODULES = _modules()
OTHERS = {"asyncio", "dataclasses", "font_manager", "keras", "np", "pyarrow", "ray", "tf"}
"""Modules of others that are named where they are not imported."""

FILES = {"csv", "h5", "html", "json", "keras", "md", "parquet", "png", "py", "zip"}
"""Ends of file names, such as `model.keras`, which name no module."""

REFERENCE = re.compile(r"`([a-z][a-z_0-9]*)\.([A-Za-z_]\w*)[^`]*`")
"""`module.name` in a docstring or comment."""


def _names(path: Path) -> set[str]:
    """The names that a module defines, those of its classes' attributes too."""
    tree = ast.parse(path.read_text())
    targets = (node.target if isinstance(node, ast.AnnAssign) else node for node in ast.walk(tree))
    return {node.id for node in targets if isinstance(node, ast.Name)} | {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    }


@pytest.mark.parametrize("path", sorted({path for paths in MODULES.values() for path in paths}), ids=str)
def test_what_docstrings_and_comments_refer_to_is_there(path):
    text = path.read_text()
    code = ast.parse(text)
    own = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    own |= {node.arg for node in ast.walk(code) if isinstance(node, ast.arg)}
    own |= {
        each.asname or each.name
        for node in ast.walk(code)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for each in node.names
    }
    dead = {
        f"{module}.{name}"
        for module, name in REFERENCE.findall(text)
        if name not in FILES and module not in {"tlray", "serve_app"}
        if (module in MODULES and not any(name in _names(each) for each in MODULES[module]))
        or module not in own | OTHERS | set(MODULES)
    }
    assert dead == set()


@pytest.mark.parametrize("path", sorted({path for paths in MODULES.values() for path in paths}), ids=str)
def test_whole_names_in_docstrings_and_comments_are_there(path):
    dead = set()
    for whole in re.findall(r"`((?:tlray|serve_app)(?:\.\w+)+)`", path.read_text()):
        parts = whole.split(".")
        places = [(ROOT.joinpath(*parts[:end]), parts[end:]) for end in range(len(parts), 0, -1)]
        found = next((place, rest) for place, rest in places if place.is_dir() or place.with_suffix(".py").exists())
        place, rest = found
        if rest and (place.is_dir() or rest[0] not in _names(place.with_suffix(".py"))):
            dead.add(whole)
    assert dead == set()
