"""The house: modules that can be read in one sitting, and packages that say what passes through them."""

import ast
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
