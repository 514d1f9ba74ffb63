"""Figures with their intervals as text."""

import pytest

from tlray.bundle import wording


@pytest.mark.parametrize("ends", [None, [None, None]])
def test_an_interval_that_is_not_known_is_left_out(ends):
    assert wording.span(ends) == wording.bracketed(ends) == ""
    assert wording.bracketed(ends, beside="by chance 25.0 %") == " (by chance 25.0 %)"
    assert wording.estimate(0.75, ends) == "0.750"
    assert wording.estimate(0.75, ends, beside="8 images") == "0.750 (8 images)"


def test_a_known_interval_is_in_brackets():
    ends = (0.5, 0.875)
    assert wording.span(ends) == "0.500 to 0.875"
    assert wording.bracketed(ends) == " (95 % interval 50.0 % to 87.5 %)"
    text = wording.bracketed(ends, wording.decimals, beside="by chance 0.250")
    assert text == " (95 % interval 0.500 to 0.875; by chance 0.250)"
    assert wording.estimate(0.75, ends) == "0.750 (95 %: 0.500 to 0.875)"
    assert wording.estimate(0.75, ends, beside="8 images") == "0.750 (95 %: 0.500 to 0.875, 8 images)"
    assert wording.estimate(0.75, [0.0, None]) == "0.750 (95 %: at least 0.000)"  # the log loss of a single patient


def test_images_without_a_patient():
    assert wording.unnamed(20, 20) == "no patients are named"
    assert wording.unnamed(18, 20) == "18 of 20 images have no named patient"
    assert wording.unnamed(1, 10) == "1 of 10 images has no named patient"
