import pytest

from tlray.errors import ConfigError
from tlray.files import roots


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/data/in", "/data/in"),
        ("/data//in/./x/../", "/data/in"),
        ("//data/in", "/data/in"),
        ("/../data", "/data"),
        ("/data/%2e%2e/in", "/data/%2e%2e/in"),  # a path is no URI
        ("/data/a b/*.png", "/data/a b/*.png"),
        ("file:///data/in", "/data/in"),
        ("FILE:///data/%2E%2e/%69n", "/in"),
        ("file:////data", "/data"),
        ("s3://bucket/in/", "s3://bucket/in"),
        ("S3://bucket", "s3://bucket"),
        ("s3://bucket/a%20b#1", "s3://bucket/a%20b#1"),  # a key
    ],
)
def test_a_location_has_one_spelling(location, expected):
    assert roots.normalize(location) == expected


@pytest.mark.parametrize(
    "location",
    [
        *("data/in", "", "~/in", "~root/in", "./in", "file://data/in", "file:data", "C:\\data"),
        *("s3://bucket/in/../out", "s3://bucket/%2e%2E/out", "s3://bucket/in%2f..%2fout", "s3://bucket//in"),
        *("s3:///in", "s3://", "s3://bucket/./in"),
        *("/data/in://etc/passwd", "://etc", "a b://x", "3s://x"),
    ],
)
def test_what_is_relative_or_unclear_is_refused(location):
    with pytest.raises(ConfigError):
        roots.normalize(location)


@pytest.mark.parametrize(
    ("location", "is_inside"),
    [
        ("/data/in", True),
        ("/data/in/a/b.png", True),
        ("file:///data/in/a", True),
        ("/data/in/../in/a", True),
        ("/data/in.zip!/a.png", False),
        ("/data/in/a.zip!/a.png", True),
        ("/data/in/a.zip!/../../../etc/passwd", True),  # a member's name, which no file system sees
        ("/data/input", False),
        ("/data", False),
        ("/data/in/../out", False),
        ("/data/in/a\0", False),
        ("in", False),
        ("s3://bucket/in/a", True),
        ("S3://bucket/in", True),
        ("s3://bucket/in2/a", False),
        ("s3://bucket", False),
        ("s3://bucket/in/../out", False),
        ("s3://Bucket/in/a", False),
        ("s3://key:secret@bucket/in/a", False),
        ("s3://bucket?endpoint_override=evil.example/in/a", False),
        ("gs://bucket/in/a", False),
        ("/data/in://etc/passwd", False),
    ],
)
def test_whole_components_decide(location, is_inside):
    allowed = ["/data/in", "s3://bucket/in/"]
    assert roots.outside([location], allowed) == ([] if is_inside else [location])


def test_links_are_followed(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    (elsewhere / "a.zip").touch()
    (root / "folder").symlink_to(elsewhere)
    (root / "a.png").symlink_to(elsewhere / "a.png")
    (root / "a.zip").symlink_to(elsewhere / "a.zip")
    (root / "inside.png").symlink_to(root / "b.png")
    (root / "loop").symlink_to(root / "loop")
    (tmp_path / "alias").symlink_to(root)
    names = ["folder/a.png", "folder", "folder/new/x", "a.png", "a.zip!/1.png", "inside.png", "loop", "new", "."]
    wanted = [f"{root}/{name}" for name in names]
    assert roots.outside(wanted, [str(root)]) == wanted[:5]
    # A root may be a link itself.
    assert roots.outside([f"{root}/new", f"{tmp_path}/alias/new"], [f"{tmp_path}/alias"]) == []


def test_everything_lies_below_the_root_of_the_file_system():
    assert roots.outside(["/a", "s3://bucket/a"], ["/"]) == ["s3://bucket/a"]


def test_without_roots_everything_is_outside():
    assert roots.outside(["/a"], []) == ["/a"]


def test_a_relative_root_is_refused():
    with pytest.raises(ConfigError, match="'data' is a relative path"):
        roots.outside(["/a"], ["data"])
