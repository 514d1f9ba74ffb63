"""Refuses URIs with passwords, before anything shows or stores them."""

from tlray.errors import ConfigError


def refuse_password(location: str) -> None:
    """Refuses a URI with a password, such as `s3://KEY:SECRET@BUCKET/1.png`, since locations are shown and stored.

    Raises:
        ConfigError: It has one. The message has the URI without user and password.
    """
    scheme, separator, rest = location.partition("://")
    authority = rest.partition("/")[0]
    if not separator or ":" not in authority:
        return
    # A secret may have a slash. What then stands before the slash looks like a host and a port.
    user = (authority if "@" in authority else rest).rpartition("@")[0]
    if ":" in user:
        raise ConfigError(
            f"'{scheme}://***@{rest.rpartition('@')[2]}' has a password, which would be shown and stored. Leave it "
            "out, and give credentials in environment variables (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "GOOGLE_APPLICATION_CREDENTIALS) or a profile (AWS_PROFILE)."
        )
