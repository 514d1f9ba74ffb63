from tlray.data.traits import TECHNICAL
from tlray.evaluation import markup


def test_commands_and_options_are_code_and_all_else_is_escaped():
    assert markup.with_code("Write <b> with `tlray audit --fix`; --refer-below sets it, a--b not.") == (
        "Write &lt;b&gt; with <code>tlray audit --fix</code>; "
        '<code class="whole">--refer-below</code> sets it, a--b not.'
    )
    assert markup.with_code("`<i>` {0} and `") == "<code>&lt;i&gt;</code> {0} and `"


def test_percentages_are_whole_in_texts_only():
    page = '<title>5 %</title><style>a { top: 5 %; }</style><img alt="5 %"><p>80.2 % (95 % interval)</p>'
    whole = '<span class="whole">80.2 %</span> (<span class="whole">95 %</span> interval)'
    assert markup.keep_percentages_whole(page) == page.replace("80.2 % (95 % interval)", whole)


def test_a_name_cannot_leave_its_string_in_a_style_sheet():
    assert markup.css_string('a"</style>\\1') == '"a\\22 \\3c \\2f style\\3e \\5c 1"'


def test_traits_have_names_for_people():
    assert markup.trait_name("top_left_mean") == "mean grey level of the top left corner"
    assert markup.trait_name("left_deviation") == "standard deviation of the grey levels of the left border"
    assert markup.trait_name("percentile_99") == "percentile 99 of the grey levels"
    assert not [name for name in TECHNICAL if "_" in markup.trait_name(name)]
    assert markup.trait_name("") == ""


def test_durations_for_people():
    assert [markup.duration(each) for each in (9.5, 59.7, 260, 7500)] == [
        "9.5 s",
        "1 min 00 s",
        "4 min 20 s",
        "2 h 05 min",
    ]
