"""The names that `from tlray import ...` gives."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tlray

TREE = ast.parse(Path(tlray.__file__).read_text())


@pytest.mark.parametrize("name", tlray.__all__)
def test_a_public_name_is_documented(name):
    assert getattr(tlray, name).__doc__


def test_type_checkers_are_told_the_same_names():
    (block,) = [node for node in TREE.body if isinstance(node, ast.If)]
    told = {
        each.asname or each.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }
    assert told == tlray._MODULE_OF
    assert sorted(told) == sorted(tlray.__all__)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'tlray' has no attribute 'fit'"):
        tlray.fit  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_package_loads_nothing_heavy_nor_do_the_configs():
    program = (
        "import sys, tlray; from tlray import TrainConfig; TrainConfig; assert 'train' in dir(tlray); "
        "print({'ray', 'tensorflow', 'keras', 'matplotlib', 'pyarrow', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
