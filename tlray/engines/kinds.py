"""Defines the interface of an engine, and the names of engines and precisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

EngineName = Literal["openvino", "tensorflow"]
Precision = Literal["float32", "bfloat16", "int8"]


class Engine(Protocol):
    """A network that is ready to run. Several threads may call it."""

    @property
    def output_shapes(self) -> Sequence[tuple[int | None, ...]]:
        """Shape of each output without the batch. A size that is not known is None; a shape that is not known, ()."""
        ...

    def run(self, images_BHWC: np.ndarray) -> list[np.ndarray]:
        """Runs the network on images.

        Args:
            images_BHWC: uint8 [batch, height, width, 3], RGB, at the network's size; at least one image.

        Returns:
            The network's outputs in its order, float32 [batch, ...].
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine and the precision in which it computes.

    Attributes:
        engine: The engine's name.
        precision: The numbers that it multiplies. Inputs and outputs are the same in all precisions.
    """

    engine: EngineName
    precision: Precision

    def __str__(self) -> str:
        return f"{self.engine} {self.precision}"


REFERENCE = EngineKind("tensorflow", "float32")
"""The engine and precision that a model was trained in, which the others are compared with."""
