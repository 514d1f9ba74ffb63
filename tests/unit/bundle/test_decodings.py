"""What is said of bundles whose images another version of tlray has decoded."""

import dataclasses

import pytest

from tests.unit.bundle.test_spec import SPEC
from tlray.bundle import decodings
from tlray.data import decoding

NOW, CHANGES = decoding.DECODING, decodings.CHANGES
SHA256 = "0123456789ab" + "f" * 52


@pytest.fixture(autouse=True)
def versions(monkeypatch):
    monkeypatch.setattr(decodings, "CHANGES", {2: "black was white", 3: "left was right"})
    monkeypatch.setattr(decoding, "DECODING", 3)


@pytest.mark.parametrize(("version", "changes"), [(1, "black was white; left was right"), (2, "left was right")])
def test_what_was_otherwise_in_earlier_versions(version, changes):
    assert decodings.describe_difference(dataclasses.replace(SPEC, decoding=version), SHA256) == (
        "The bundle 0123456789ab was made by an earlier version of tlray, which decoded some images otherwise "
        f"(decoding {version}, here 3): {changes}. If it learned from such images, train or export it again."
    )


def test_nothing_is_said_where_nothing_differs():
    assert decodings.describe_difference(dataclasses.replace(SPEC, decoding=3), SHA256) == ""


def test_a_later_version():
    assert decodings.describe_difference(dataclasses.replace(SPEC, decoding=4), SHA256) == (
        "The bundle 0123456789ab was made by a later version of tlray, which decodes images otherwise (decoding 4, "
        "here 3). Use that version."
    )


def test_each_version_says_what_it_has_changed():
    """Whoever raises `decoding.DECODING` adds a text."""
    assert set(CHANGES) == set(range(2, NOW + 1))
