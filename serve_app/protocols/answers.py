"""Schemas of answers for the OpenAPI document. Those of error answers are in `refusals`."""

from typing import Any, Literal

from pydantic import BaseModel, Field

ENGINE = "The engine and precision that predict, such as openvino bfloat16; replicas on other CPUs may have another one"
"""Description of a field of the answers that describe the model."""


class Live(BaseModel):
    """The process is alive."""

    live: bool


class Ready(BaseModel):
    """The model is ready."""

    ready: bool
    model: str
    bundle_sha256: str


class ModelShown(BaseModel):
    """The model that answers at /predict."""

    model: str
    version: int
    bundle_sha256: str
    classes: list[str] = Field(description="Names of the classes, in the order of the model's outputs")
    refer_below: float = Field(description="Predictions with a lower confidence are marked `refer`")
    max_ood_score: float | None = Field(
        description="Limit of `ood_score`: images above it are marked `refer` as `out_of_distribution`; null: not known"
    )
    engine: str = Field(description=ENGINE)


Reason = Literal["out_of_distribution", "low_confidence", "ambiguous"]
"""Why an image is referred to a person."""


class Lookalike(BaseModel):
    """A training image that is like the image."""

    label: str = Field(description="Its label in training")
    similarity: float = Field(description="Cosine similarity of the model's features, in [-1, 1]")
    jpeg: str = Field(description="The training image, a small JPEG in base64")


class FileRow(BaseModel):
    """The prediction for a file, or the error if it cannot be read."""

    file: str
    label: str | None
    confidence: float | None = Field(
        description="Probability of the label; it means nothing if `refer_reason` is `out_of_distribution`"
    )
    refer: bool | None = Field(description="Whether a specialist must look at the image")
    refer_reason: Reason | None = Field(
        description="Why: unlike the images of training, under the threshold, or several classes may be right"
    )
    prediction_set: list[str] | None = Field(description="The classes that the image may have; null: not known")
    ood_score: float | None = Field(
        description="How unlike the images of training it is, see `max_ood_score` of /model; null: not known"
    )
    probabilities: dict[str, float] | None
    explanation: str = Field("", description="Grad-CAM overlay with explain=true, a PNG in base64")
    explanation_error: str = Field("", description="Why there is no explanation, with explain=true")
    lookalikes: list[Lookalike] = Field([], description="With lookalikes=true: the most similar training images")
    error_code: str | None
    error: str | None


class Timing(BaseModel):
    """Milliseconds for decoding the images and for predicting."""

    decode: float
    predict: float


class Predictions(BaseModel):
    """The predictions, one per file, in the order of the files."""

    model: str
    bundle_sha256: str
    predictions: list[FileRow]
    timing_ms: Timing


class JudgedRow(BaseModel):
    """The prediction for an image, with its judgement."""

    probabilities: list[float]
    refer: bool = Field(description="Whether a specialist must look at the image")
    refer_reason: Reason | Literal[""] = Field(description="Why; empty if the image is not referred")
    ood_score: float = Field(
        description="How unlike the images of training it is, see `max_ood_score` of /model; -1: not known"
    )
    prediction_set: list[bool] = Field(
        description="Whether the image may have each class, in the order of `probabilities`; all false: not known"
    )


class JudgedColumns(BaseModel):
    """The predictions for images, with their judgement: of each output a list with a value for each image."""

    probabilities: list[list[float]]
    refer: list[bool]
    refer_reason: list[Reason | Literal[""]]
    ood_score: list[float]
    prediction_set: list[list[bool]]


class Rows(BaseModel):
    """The answer to a request with `instances`: for each image its probabilities, or the outputs of `judged`."""

    predictions: list[list[float]] | list[JudgedRow]


class Columns(BaseModel):
    """The answer to a request with `inputs`: the probabilities of each image, or the outputs of `judged`."""

    outputs: list[list[float]] | JudgedColumns


class VersionStatus(BaseModel):
    """An answer that says whether a version of the model is available."""

    version: str
    state: str
    status: dict[str, str]


class ModelStatus(BaseModel):
    """The versions of a model."""

    model_version_status: list[VersionStatus]


class ModelSpec(BaseModel):
    """Name and version of the model."""

    name: str
    signature_name: str
    version: str


class SignatureMetadata(BaseModel):
    """The model's signatures, in the form of TensorFlow Serving."""

    model_spec: ModelSpec
    metadata: dict[str, Any] = Field(description="signature_def: the inputs and outputs of each signature")


class ServerMetadata(BaseModel):
    """Name, version and protocol extensions of the server."""

    name: str
    version: str
    extensions: list[str]


class Models(BaseModel):
    """The names of the models."""

    models: list[str]


class TensorMetadata(BaseModel):
    """Description of a tensor; in `shape`, -1 stands for any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelParameters(BaseModel):
    """Facts about a model that the Open Inference Protocol has no field of its own for, so they are parameters."""

    engine: str = Field(description=ENGINE)


class ModelMetadata(BaseModel):
    """Description of a model's input and output tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ModelParameters


class ModelReady(BaseModel):
    """An answer that says whether a model is ready to predict."""

    name: str
    ready: bool


class OutputTensor(TensorMetadata):
    """A tensor with its data, or with the number of its bytes after the JSON."""

    data: list[bool] | list[float] | list[str] = []
    parameters: dict[str, int] = {}


class InferAnswer(BaseModel):
    """The answer to an inference request."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class Progress(BaseModel):
    """Numbers of images: scored so far, failed among these, and in total."""

    done: int
    failed: int
    total: int


class Batch(BaseModel):
    """State and progress of a batch (bulk scoring in the background)."""

    id: str
    state: str = Field(description="pending, running, succeeded, failed, cancelled")
    progress: Progress | None
    message: str | None = Field(
        description="What a pending batch waits for, why a batch failed, or that its progress cannot be read"
    )
    input: str
    output: str
    version: int
    bundle_sha256: str


class BatchList(BaseModel):
    """Batches, the newest first."""

    batches: list[Batch]
