import ast
import inspect
import pickle

import pytest

from tlray import errors
from tlray.errors import (
    BundleError,
    ConfigError,
    DataError,
    ImageError,
    ImageErrorCode,
    TlrayError,
    counted,
    some,
    times,
)

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_which_is_which():
    assert {each.__name__ for each in CLASSES} == {
        "TlrayError", "ConfigError", "DataError", "BundleError", "ImageError"
    }  # fmt: skip
    assert all(issubclass(each, TlrayError) for each in CLASSES)
    assert [each for each in CLASSES if issubclass(each, ValueError)] == [ConfigError, DataError]


@pytest.mark.parametrize("error", [TlrayError("a 7"), ConfigError("b"), DataError("c"), BundleError("d")], ids=repr)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(error, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)


@pytest.mark.parametrize("code", list(ImageErrorCode))
def test_image_errors_survive_pickling(code):
    again = pickle.loads(pickle.dumps(ImageError(code, "It ends at byte 7.")))  # noqa: S301
    assert type(again) is ImageError
    assert again.code is code
    assert (again.message, str(again)) == ("It ends at byte 7.", "It ends at byte 7.")


def test_image_error_codes_are_documented_and_named_like_their_values():
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(errors)).body
        if isinstance(node, ast.ClassDef) and node.name == "ImageErrorCode"
    )
    documented = {}
    for code, text in zip(body[1::2], body[2::2], strict=True):  # after the class's own docstring
        assert isinstance(code, ast.Assign)
        assert isinstance(text, ast.Expr)
        documented[ast.unparse(code.targets[0])] = ast.literal_eval(text.value)
    assert {name: name.lower() for name in documented} == {code.name: code.value for code in ImageErrorCode}
    assert all(text.endswith(".") for text in documented.values())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["b", "a"], "'a', 'b'"),
        ({"c", "a", "b"}, "'a', 'b', 'c'"),
        (["d", "c", "b", "a"], "'a', 'b', 'c' and 1 more"),
        (list("fedcba"), "'a', 'b', 'c' and 3 more"),
    ],
)
def test_some(names, expected):
    assert some(names, limit=3) == expected


def test_numbers_go_with_their_nouns():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [times(number) for number in (1, 2, 3)] == ["once", "twice", "3 times"]
