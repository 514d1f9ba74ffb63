"""Controls of an evaluation on other data say nothing unless they are of all its classes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.trust.test_shortcuts import CLASSES, GROUPS, NUM_IMAGES, random_table
from tlray.trust import elsewhere, shortcuts


def call(functions: Sequence[Callable[[], Any]]) -> list[Any]:
    return [function() for function in functions]


@pytest.mark.parametrize("has_patients", [True, False])
def test_a_control_that_leaves_out_a_class_is_none(monkeypatch, has_patients: bool):
    monkeypatch.setattr(shortcuts, "NUM_TREES", 5)
    groups = [group if has_patients or label != "c" else "one" for group, label in zip(GROUPS, CLASSES, strict=True)]
    found = elsewhere.find(
        random_table(),
        CLASSES,
        groups,
        fold_groups=groups,
        is_new=np.ones(NUM_IMAGES, bool),
        nearest=CLASSES,
        split="test",
        seed=0,
        call=call,
    )
    assert found["shortcuts"]["left_out"] == ([] if has_patients else ["c"])
    assert (found["traits_control"] is not None) == has_patients
    assert found["neighbour_control"]["accuracy"] == 1.0
    assert found["permuted_control"] is None
