import hmac
import logging
import pickle
from pathlib import Path

import pytest

from serve_app.http import auth
from serve_app.http.auth import ApiKeys, Verdict
from tlray.errors import ConfigError

ONE, TWO, THREE = "one-0123456789abcdef", "two-0123456789abcdef", "three-0123456789abcdef"


def of_file(path: Path, text: str, **more: str) -> ApiKeys:
    path.write_text(text, encoding="utf-8")
    return ApiKeys({"TLRAY_API_KEYS_FILE": str(path), **more})


def replace(path: Path, text: str) -> None:
    """As an editor does it, and a mounted secret: another file of this name."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def opens(keys: ApiKeys, *which: str) -> list[bool]:
    return [keys.check(x_api_key=key) is Verdict.ALLOWED for key in which]


def test_without_keys_none_is_required():
    keys = ApiKeys({})
    assert not keys.required
    assert keys.check() is Verdict.ALLOWED
    assert keys.check(x_api_key="anything") is Verdict.ALLOWED


def test_the_verdicts_are_http_statuses():
    assert {verdict.name: verdict.value for verdict in Verdict} == {"ALLOWED": 200, "MISSING": 401, "WRONG": 403}


@pytest.mark.parametrize(
    ("headers", "verdict"),
    [
        ({}, Verdict.MISSING),
        ({"authorization": f"Bearer {ONE}"}, Verdict.ALLOWED),
        ({"authorization": f"bearer   {TWO} "}, Verdict.ALLOWED),
        ({"x_api_key": TWO}, Verdict.ALLOWED),
        ({"x_api_key": f" {TWO} "}, Verdict.ALLOWED),
        ({"authorization": f"Bearer {THREE}", "x_api_key": ONE}, Verdict.ALLOWED),
        ({"authorization": f"Bearer {ONE}", "x_api_key": ""}, Verdict.ALLOWED),
        ({"authorization": "Basic dXNlcjpwYXNz", "x_api_key": ONE}, Verdict.ALLOWED),
        ({"authorization": f"Bearer {THREE}"}, Verdict.WRONG),
        ({"authorization": f"Bearer {ONE[:-1]}"}, Verdict.WRONG),
        ({"authorization": f"Bearer {ONE},{TWO}"}, Verdict.WRONG),
        ({"x_api_key": ONE.upper()}, Verdict.WRONG),
        ({"x_api_key": "k\xe4\udcff"}, Verdict.WRONG),
        ({"authorization": "Basic dXNlcjpwYXNz"}, Verdict.MISSING),
        ({"authorization": ONE}, Verdict.MISSING),
        ({"authorization": "Bearer"}, Verdict.MISSING),
        ({"authorization": "Bearer  ", "x_api_key": " "}, Verdict.MISSING),
        ({"authorization": ""}, Verdict.MISSING),
    ],
)
def test_the_key_is_sent_in_one_of_two_headers(headers, verdict):
    keys = ApiKeys({"TLRAY_API_KEYS": f" {ONE}, {TWO},"})
    assert keys.required
    assert keys.check(**headers) is verdict


def test_every_key_is_compared_in_constant_time(monkeypatch):
    calls = []

    def compare(left: bytes, right: bytes) -> bool:
        calls.append((len(left), len(right)))
        return hmac.compare_digest(left, right)

    class Hmac:
        compare_digest = staticmethod(compare)

    keys = ApiKeys({"TLRAY_API_KEYS": f"{ONE},{TWO},{THREE}"})
    monkeypatch.setattr(auth, "hmac", Hmac)
    for sent in (ONE, THREE, "x", "y" * 1000):
        calls.clear()
        keys.check(x_api_key=sent)
        assert calls == [(32, 32)] * 3  # digests, whatever the lengths are and whichever fits


def test_a_file_has_one_key_a_line_and_comments(tmp_path):
    keys = of_file(tmp_path / "keys", f"\ufeff# of the ward\n{ONE}\r\n\n  {TWO}  \n  # {THREE}\n")
    assert keys.required
    assert opens(keys, ONE, TWO, THREE) == [True, True, False]


def test_both_variables_add_up(tmp_path):
    keys = of_file(tmp_path / "keys", ONE, TLRAY_API_KEYS=TWO)
    assert opens(keys, ONE, TWO, THREE) == [True, True, False]


def test_the_file_is_read_again_when_it_changes_and_only_then(tmp_path, monkeypatch, caplog):
    path = tmp_path / "keys"
    keys = of_file(path, ONE)
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", None)  # reading would fail
        assert opens(keys, ONE, TWO) == [True, False]
    replace(path, TWO)  # of the same length, perhaps at the same time
    with caplog.at_level(logging.INFO):
        assert opens(keys, ONE, TWO) == [False, True]
    assert [record.getMessage() for record in caplog.records] == ["TLRAY_API_KEYS_FILE was read again. Keys: 1"]
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{THREE}\n")
    assert opens(keys, ONE, TWO, THREE) == [False, True, True]


def make_missing(path: Path) -> None:
    path.unlink()


def make_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_empty(path: Path) -> None:
    path.write_text("\n# nothing\n", encoding="utf-8")


def make_short(path: Path) -> None:
    path.write_text(f"{ONE}\nshort-{'5' * 4}\n", encoding="utf-8")


def make_binary(path: Path) -> None:
    path.write_bytes(ONE.encode() + b"\n\xff\xfe\n")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (make_missing, "cannot be read: No such file or directory."),
        (make_a_directory, "cannot be read: Is a directory."),
        (make_empty, "has no key."),
        (make_short, "has 10 characters; at least 16 are required."),
        (make_binary, "is not UTF-8 text."),
    ],
)
@pytest.mark.parametrize("also_listed", [False, True])
def test_a_file_that_can_no_longer_be_used_opens_nothing_and_is_told_once(
    tmp_path, caplog, change, complaint, also_listed
):
    path = tmp_path / "keys"
    keys = of_file(path, ONE, **({"TLRAY_API_KEYS": TWO} if also_listed else {}))
    assert opens(keys, ONE, TWO) == [True, also_listed]
    change(path)
    for _ in range(3):
        assert keys.check(x_api_key=ONE) is Verdict.WRONG
        assert keys.check() is Verdict.MISSING
        assert opens(keys, TWO) == [also_listed]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("No key of TLRAY_API_KEYS_FILE is accepted: ")
    assert complaint in record.getMessage()
    assert not any(secret in caplog.text for secret in (ONE, TWO, "5555"))
    if path.is_dir():
        path.rmdir()
    path.write_text(THREE, encoding="utf-8")
    assert opens(keys, ONE, THREE) == [False, True]
    assert keys.required


def test_a_file_that_may_no_longer_be_read_opens_nothing(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    keys = of_file(path, ONE)
    path.chmod(0)

    def refuse(*_args: object, **_options: object) -> None:  # root may read it all the same
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert opens(keys, ONE) == [False]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TLRAY_API_KEYS": ""}, "TLRAY_API_KEYS has no key"),
        ({"TLRAY_API_KEYS": " , "}, "TLRAY_API_KEYS has no key"),
        ({"TLRAY_API_KEYS": f"{ONE},{'s' * 15}"}, "Key 2 of TLRAY_API_KEYS has 15 characters; at least 16"),
        ({"TLRAY_API_KEYS": f"{ONE} {TWO}"}, "Key 1 of TLRAY_API_KEYS has a space"),
        ({"TLRAY_API_KEYS": "schlüssel-0123456789"}, "Key 1 of TLRAY_API_KEYS has .* outside ASCII"),
        ({"TLRAY_API_KEYS_FILE": ""}, "TLRAY_API_KEYS_FILE='' cannot be read: No such file"),
        ({"TLRAY_API_KEYS_FILE": "/nowhere", "TLRAY_API_KEYS": ONE}, "TLRAY_API_KEYS_FILE='/nowhere' cannot be read"),
    ],
)
def test_what_names_no_key_that_can_be_used_is_an_error_and_no_open_door(environment, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ApiKeys(environment)
    assert not any(secret in str(caught.value) for secret in (ONE, TWO, "sss", "schl"))


def test_keys_are_not_held(tmp_path):
    keys = of_file(tmp_path / "keys", ONE, TLRAY_API_KEYS=TWO)
    assert ONE not in f"{keys!r} {keys} {vars(keys)}"
    assert TWO not in f"{keys!r} {keys} {vars(keys)}"
    content = pickle.dumps(keys)
    assert ONE.encode() not in content
    assert TWO.encode() not in content
    assert opens(pickle.loads(content), ONE, TWO, THREE) == [True, True, False]  # noqa: S301
