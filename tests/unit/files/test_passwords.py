"""A URI with a password is refused, and no message has the password."""

import json
from typing import Any

import pytest

from serve_app.batches import order
from serve_app.errors import RequestError
from serve_app.foreground import read_options
from serve_app.options import Options
from tlray.cluster import locations
from tlray.config.prediction import ServeConfig
from tlray.config.training import TrainConfig
from tlray.data import listing
from tlray.errors import ConfigError
from tlray.files import roots, storage

REFUSED = [
    ("s3://KEY:SECRET@bucket/x.png", "s3://***@bucket/x.png"),
    ("s3://KEY:SEC/RET@bucket/x.png", "s3://***@bucket/x.png"),  # Amazon's keys may have a slash
    ("s3://KEY:12/SECRET@bucket/x.png", "s3://***@bucket/x.png"),
    ("s3://KEY:SEC@RET@bucket", "s3://***@bucket"),
    ("gs://me:SECRET@bucket/a@b/c", "gs://***@b/c"),
    ("abfs://:SECRET@account.example/x", "abfs://***@account.example/x"),
    ("file://me:SECRET@host/x", "file://***@host/x"),
    ("s3://KEY:SECRET@bucket/x.zip!/a/1.png", "s3://***@bucket/x.zip!/a/1.png"),
]


@pytest.mark.parametrize("function", [storage.absolute, storage.open_location, storage.exists, roots.normalize])
@pytest.mark.parametrize(("location", "shown"), REFUSED)
def test_a_password_is_refused_and_not_shown(function, location, shown):
    with pytest.raises(ConfigError) as caught:
        function(location)
    message = str(caught.value)
    assert message.startswith(f"'{shown}' has a password")
    assert "AWS_SECRET_ACCESS_KEY" in message
    assert not any(part in message for part in ("SECRET@", "KEY:", "SEC/", "RET@"))


@pytest.mark.parametrize(
    "location",
    [
        "s3://bucket/a:b@c",
        "gs://anonymous@bucket/a:b",
        "file:///a:b@c/d",
        "s3://bucket",
        "hdfs://host:8020/a",
        "/a:b@c",
    ],
)
def test_what_has_no_password_is_taken(location):
    assert storage.absolute(location) == location


def test_a_table_with_a_password_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("uri,label\na.png,x\ns3://KEY:SECRET@bucket/1.png,y\n")
    with pytest.raises(ConfigError, match=r"^'s3://\*\*\*@bucket/1.png' has a password") as caught:
        listing.list_images(str(tmp_path / "list.csv"))
    assert "SECRET@" not in str(caught.value)


@pytest.mark.parametrize("name", ["data", "out", "weights", "class_map"])
def test_a_training_begins_with_no_password(name):
    given: dict[str, Any] = {"data": "/data", "out": "/out"} | {name: "s3://KEY:SECRET@bucket/x"}
    with pytest.raises(ConfigError, match=r"^'s3://\*\*\*@bucket/x' has a password"):
        locations.absolute(TrainConfig(**given))


@pytest.mark.parametrize("name", ["bundle", "input_roots", "output_roots"])
def test_the_endpoint_shows_no_password(name):
    location = "s3://KEY:SECRET@bucket/x"
    given: dict[str, Any] = {"bundle": "/b"} | {name: location if name == "bundle" else (location,)}
    with pytest.raises(ConfigError) as caught:
        read_options(ServeConfig(**given))
    assert "SECRET@" not in str(caught.value)
    with pytest.raises(ValueError, match="has a password") as of_a_file:
        Options(**given)
    assert "SECRET@" not in str(of_a_file.value)


@pytest.mark.parametrize("name", ["input", "output"])
def test_an_order_of_a_batch_is_refused_without_its_password(name):
    given = {"input": "s3://bucket/in", "output": "s3://bucket/out"} | {name: "s3://KEY:SECRET@bucket/x"}
    with pytest.raises(RequestError) as caught:
        order.parse(json.dumps(given).encode())
    assert f"{name}: 's3://***@bucket/x' has a password" in str(caught.value)
    assert "SECRET@" not in str(caught.value)
