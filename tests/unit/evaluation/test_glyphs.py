"""Labels of figures: names where a font has their glyphs, numbers where none has. No font of this machine decides."""

import logging

from tlray.evaluation import glyphs

LABELS = ("normal", "лёгкое", "سرطان", "肺")
"""The last one alone is not in DejaVu Sans, which comes with matplotlib."""


def test_names_that_can_be_drawn_are_themselves():
    labels = glyphs.label_classes(LABELS[:3], ())
    assert labels == glyphs.Labels(texts=LABELS[:3], families=("DejaVu Sans",), is_numbered=False)
    assert not glyphs.label_classes(["two\nlines", ""], ()).is_numbered


def test_all_are_numbered_where_one_cannot_be_drawn():
    labels = glyphs.label_classes(LABELS, ("STIXGeneral",))
    assert labels.texts == ("1 normal", "2 лёгкое", "3 سرطان", "4")
    assert labels.families == ("DejaVu Sans",)
    assert labels.is_numbered
    assert glyphs.label_classes(["a\tb"], ()).texts == ("1",)


def test_only_the_families_that_are_needed_are_taken():
    # U+237C is in STIXGeneral and not in DejaVu Sans; cmr10 has no letter that DejaVu Sans lacks.
    labels = glyphs.label_classes(["a", "⍼"], ("cmr10", "STIXGeneral"))
    assert labels == glyphs.Labels(texts=("a", "⍼"), families=("DejaVu Sans", "STIXGeneral"), is_numbered=False)


def test_a_family_that_has_gone_has_no_glyph():
    assert glyphs.label_classes(["⍼"], ("No Such Family",)).texts == ("1",)


def test_installed_families_are_text_fonts_that_are_found_without_a_word(caplog):
    with caplog.at_level(logging.WARNING):
        found = glyphs.installed_families()
        assert glyphs.label_classes(["\uf8ff\u0378"]).is_numbered  # no character has these code points: all are asked
    assert not [family for family in found if family.startswith(("STIX", "cm", "Last Resort"))]
    assert caplog.messages == []
