"""Stamps change when a file does, and nothing is read for them."""

import os
import zipfile

from tlray.files import file_stamps, storage


def test_size_and_time_are_the_stamp(tmp_path):
    path = tmp_path / "a b#%.png"
    path.write_bytes(b"abc")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    path.chmod(0)  # it may not be read
    assert file_stamps.stamps([str(path), f"{path}x", str(tmp_path)]) == ["3 1700000000123456789", "", ""]
    path.chmod(0o600)
    os.utime(path, ns=(6, 1_700_000_000_123_456_789))
    assert file_stamps.stamps([str(path)]) == ["3 1700000000123456789"]  # when it was read does not count
    path.write_bytes(b"abcd")
    os.utime(path, ns=(5, 1_700_000_000_123_456_789))
    assert file_stamps.stamps([str(path)]) == ["4 1700000000123456789"]


def test_a_member_has_its_own_checksum(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.png", b"123456789")
        archive.writestr("2.png", b"")
    os.utime(path, ns=(5, 7))
    of_archive = f"{path.stat().st_size} 7"
    locations = [f"{path}!/1.png", f"{path}!/2.png", f"{path}!/3.png", str(path), f"{tmp_path}/b.zip!/1.png"]
    assert file_stamps.stamps(locations) == [
        f"{of_archive} 9 {0xCBF43926}",  # the check value of CRC-32
        f"{of_archive} 0 0",
        of_archive,
        of_archive,
        "",
    ]


def test_an_object_store_tells_size_and_time():
    storage.make_directory("mock://stamps/bucket")
    storage.write_bytes("mock://stamps/bucket/1.png", b"12345")
    (stamp, missing) = file_stamps.stamps(["mock://stamps/bucket/1.png", "mock://stamps/bucket/2.png"])
    assert stamp.split()[0] == "5"
    assert missing == ""
