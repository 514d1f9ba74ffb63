"""The settings of the application, which are also the arguments of `serve run serve_app.app:build`."""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tlray.config.training import EngineChoice, PrecisionChoice
from tlray.files import roots, storage

ORIGIN = re.compile(r"http(://(?!.*:80$)|s://(?!.*:443$))([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?")
"""Pattern of an origin: scheme, host in lower case, and the port unless it is the scheme's default."""

MAX_REQUESTS = 10_000
"""Maximum concurrent requests per replica. Far above the images that ingresses hold: these alone refuse.

At a limit of 64, images beyond it waited for up to 25 s in Serve's router, on a replica that was idle (three clients
with 64 images each, Ray 2.60 without HAProxy).
"""

CPUS_PER_REPLICA = 4
"""CPUs, and so threads, of each model replica where there may be several. InceptionV3 uses that many well."""


def _check_origin(value: str) -> str:
    """Returns a valid origin; refuses any other spelling, which would never match what browsers send."""
    if ORIGIN.fullmatch(value) is None:
        raise ValueError("write the origin as browsers send it, such as https://scans.example or http://host:3000")
    return value


Location = Annotated[str, AfterValidator(storage.absolute)]
Root = Annotated[str, AfterValidator(roots.normalize)]
Origin = Annotated[str, AfterValidator(_check_origin)]


class Options(BaseModel):
    """The application's settings. Those of Serve itself, such as the delays of autoscaling, are in config.yaml."""

    # A location that is refused because it has a password must not be shown.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    bundle: Location
    """Path or URI of the bundle that is served."""
    name: str = Field(default="chest-ct", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """The model's name in addresses such as /v1/models/NAME."""
    version: int = Field(default=1, ge=1)
    """Number of the main version of the model, the one in `bundle`."""
    other_versions: dict[int, Location] = Field(default_factory=dict)
    """Further versions to serve: their numbers, with the path or URI of each bundle."""

    shadow_bundle: Location | None = None
    """Path or URI of a bundle that gets answered requests of the main version, for comparison only; None: none."""
    shadow_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the main version's requests that the shadow bundle gets."""

    open_without_keys: bool = False
    """If there are no API keys, answer other machines too, not this one alone."""

    loopback_only: bool = False
    """Serve listens on a loopback address, so all clients are on this machine even if HAProxy hides their addresses."""

    endpoint: str = Field(default="", pattern=r"^[0-9a-f]*$")
    """Name that answers carry as X-Tlray-Endpoint. `tlray serve` sets it, to check that its own endpoint answers."""

    cors_origins: list[Origin] = Field(default_factory=list)
    """Origins of other sites, such as https://scans.example, whose pages may send requests; empty: none."""

    one_process: bool = False
    """Decode and predict in a single process. With few cores this gives some more images per second, as no image moves
    between processes. But its requests are lost if it dies; otherwise they are retried. It must not be scaled: Serve
    would count requests, not images."""
    use_gpu: bool = False
    """Each model replica uses a GPU."""
    engine: EngineChoice = "auto"
    """The library that runs the model; auto: OpenVINO on CPUs, TensorFlow on GPUs."""
    precision: PrecisionChoice = "auto"
    """Numbers that the model computes with. Nodes with different CPUs need float32 to give the same answers."""
    max_replicas: int = Field(default=1, ge=1)
    """Maximum number of model replicas of a version; without load there is one. A single one uses the cores of a
    socket. Of several, each takes 4 CPUs, or a GPU; more replicas on the same cores would gain nothing."""
    max_batch_size: int = Field(default=32, ge=1, le=1024)
    """Maximum number of images in a batch of the model."""
    max_queued_images: int = Field(default=256, ge=1, le=MAX_REQUESTS)
    """Maximum number of images that an ingress replica holds; more are refused with 429. The default is four of the
    largest requests."""
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    """Maximum size of a request body in bytes; larger ones are refused with 413."""
    max_images_per_request: int = Field(default=64, ge=1)
    """Maximum number of images in a request; more are refused with 413."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Seconds after which a request that is not answered ends with 504."""

    @model_validator(mode="after")
    def _check_versions(self) -> Self:
        if self.version in self.other_versions or min(self.other_versions, default=1) < 1:
            raise ValueError(
                f"The numbers of other_versions must be 1 or more and differ from version {self.version}. "
                f"Received: {sorted(self.other_versions)}"
            )
        return self

    @model_validator(mode="after")
    def _check_process(self) -> Self:
        if self.one_process and self.max_replicas > 1:
            raise ValueError(f"With one_process, max_replicas must be 1. Received: {self.max_replicas}")
        return self

    input_roots: list[Root] = Field(default_factory=list)
    """Absolute directories or URIs below which bulk scoring may read; empty: bulk scoring is off."""
    output_roots: list[Root] = Field(default_factory=list)
    """Absolute directories or URIs below which bulk scoring may write; empty: bulk scoring is off."""
