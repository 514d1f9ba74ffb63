"""What an operator chooses of the application; also the arguments of `serve run serve_app.app:build`."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tlray.files import roots, storage

ORIGIN = re.compile(r"http(://(?!.*:80$)|s://(?!.*:443$))([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?")
"""An origin: scheme, host in lower case, and the port where it is not the scheme's usual one."""

CPUS_PER_REPLICA = 4
"""Of each model replica where there may be several, and its threads: what InceptionV3 uses well."""


def _check_origin(value: str) -> str:
    """Refuses what no browser sends as an Origin: another spelling would never be found equal to it."""
    if ORIGIN.fullmatch(value) is None:
        raise ValueError("an origin is written as browsers send it, such as https://scans.example or http://host:3000")
    return value


Location = Annotated[str, AfterValidator(storage.absolute)]
Root = Annotated[str, AfterValidator(roots.normalize)]
Origin = Annotated[str, AfterValidator(_check_origin)]


class Options(BaseModel):
    """The application's settings; Serve's own, such as the delays of autoscaling, are in config.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: Location
    """The bundle that is served, a path or URI."""
    name: str = Field(default="chest-ct", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The model's name in addresses such as /v1/models/NAME."""
    version: int = Field(default=1, ge=1)
    """The number of this version of the model."""
    other_versions: dict[int, Location] = Field(default_factory=dict)
    """Versions that are served beside it, by number: version to bundle."""

    shadow_bundle: Location | None = None
    """A bundle that sees requests of the main version after they were answered, and is only compared; None: none."""
    shadow_share: float = Field(default=1.0, gt=0, le=1)
    """The share of these requests that it sees."""

    open_without_keys: bool = False
    """Without API keys answer other machines too, not this one alone."""

    loopback_only: bool = False
    """Serve listens on a loopback address: whoever asks is on this machine, though HAProxy hides their address."""

    endpoint: str = Field(default="", pattern=r"^[0-9a-f]*$")
    """The name that answers carry as X-Tlray-Endpoint. `tlray serve` sets it to see that it reaches itself."""

    cors_origins: list[Origin] = Field(default_factory=list)
    """Origins of other sites, such as https://scans.example, whose pages may ask; empty: none."""

    one_process: bool = False
    """Decode and predict in the same replicas: some more images a second where cores are few, as nothing travels, but
    a replica that dies takes the requests that it holds with it. Otherwise they are retried."""
    use_gpu: bool = False
    """Each model replica takes a GPU."""
    max_replicas: int = Field(default=1, ge=1)
    """Model replicas of a version, at most; there is one at rest. A single one uses all CPUs of its node; several take
    4 each, as more on the same cores would gain nothing, or a GPU each."""
    max_batch_size: int = Field(default=32, ge=1, le=1024)
    """Images that the model takes at once."""
    max_queued_images: int = Field(default=256, ge=1)
    """Images that an ingress replica holds; more are refused with 429. Four of the largest requests, by default."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Larger requests are refused with 413."""
    max_images_per_request: int = Field(default=64, ge=1)
    """A request with more images is refused with 413."""
    timeout_s: float = Field(default=30.0, gt=0)
    """A request that is not answered by then ends with 504."""

    @model_validator(mode="after")
    def _check_versions(self) -> Self:
        if self.version in self.other_versions or min(self.other_versions, default=1) < 1:
            raise ValueError(
                f"other_versions must be numbers from 1 on beside version {self.version}: {sorted(self.other_versions)}"
            )
        return self

    input_roots: list[Root] = Field(default_factory=list)
    """Absolute directories or URIs below which bulk scoring may read; empty: none."""
    output_roots: list[Root] = Field(default_factory=list)
    """Absolute directories or URIs below which bulk scoring may write; empty: none."""
