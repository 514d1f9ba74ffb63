"""The graph of a Keras model as a list of calls, to find tensors in it and to compute parts of it anew."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One step of a model.

    Attributes:
        layer: The layer that is called.
        args: Its arguments, some of them Keras tensors.
        kwargs: Its keyword arguments.
        taken: The Keras tensors among the arguments.
        given: The Keras tensors of the result.
    """

    layer: Any
    args: Any
    kwargs: Any
    taken: list[Any]
    given: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A model's graph on inputs of its own; the layers are the model's.

    Attributes:
        inputs: The input tensors.
        calls: The calls in order of execution.
        output: The output tensor, the first one where there are several.
    """

    inputs: list[Any]
    calls: list[Call]
    output: Any

    @property
    def input(self) -> Any:
        """The input tensor of a model with one input."""
        (tensor,) = self.inputs
        return tensor


def trace(model: keras.Model, inputs: Sequence[Any] = (), *, with_nested: bool = False) -> Graph:
    """Calls a model on new inputs and returns its graph.

    Args:
        model: The model.
        inputs: The Keras tensors to call it on; if empty, some like the model's own inputs.
        with_nested: Give the calls of the layers of nested models, with calls of `same` where tensors enter and leave
            them; otherwise a nested model is one layer.
    """
    own = [*inputs] or [keras.Input(batch_shape=each.shape, dtype=each.dtype) for each in model.inputs]
    calls, outputs = _trace(model, own, with_nested=with_nested)
    return Graph(inputs=own, calls=calls, output=outputs[0])


def _trace(model: keras.Model, inputs: list[Any], *, with_nested: bool) -> tuple[list[Call], list[Any]]:
    calls: list[Call] = []

    def record(layer: Any, args: Any, kwargs: Any, result: Any) -> Any:
        taken, given = _tensors([args, kwargs]), _tensors(result)
        calls.append(Call(layer=layer, args=args, kwargs=kwargs, taken=taken, given=given))
        return result

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer(*args, **kwargs)
        if not with_nested or not isinstance(layer, keras.Model):
            return record(layer, args, kwargs, result)
        # Nested models have graphs of their own, in which layers may have names that are taken out here.
        taken = _tensors([args, kwargs])
        inner_inputs: list[Any] = [keras.Input(batch_shape=each.shape, dtype=each.dtype) for each in taken]
        inner_calls, inner_outputs = _trace(layer, inner_inputs, with_nested=True)
        for outer, inner in zip(taken, inner_inputs, strict=True):
            record(same, (outer,), {}, inner)
        calls.extend(inner_calls)
        for inner, outer in zip(inner_outputs, _tensors(result), strict=True):
            record(same, (inner,), {}, outer)
        return result

    # A Sequential has no graph for clone_model.
    as_functional = keras.Model(model.inputs, model.outputs) if isinstance(model, keras.Sequential) else model
    same_layers = keras.models.clone_model(
        as_functional,
        input_tensors=keras.tree.pack_sequence_as(as_functional.input, inputs),
        clone_function=lambda layer: layer,
        call_function=call,
    )
    return calls, same_layers.outputs


def same(tensor: Any) -> Any:
    """Passes a tensor between the graphs of a nested model and of the one around it."""
    return tensor


def _tensors(structure: Any) -> list[Any]:
    return [each for each in keras.tree.flatten(structure) if isinstance(each, keras.KerasTensor)]


def between(calls: Sequence[Call], start: Iterable[Any], end: Iterable[Any]) -> list[Call]:
    """Returns the calls that compute the tensors `end` from the tensors `start`, in order."""
    known = set(map(id, start))
    wanted = set(map(id, end)) - known
    path: list[Call] = []
    for call in reversed(calls):
        if not wanted.isdisjoint(map(id, call.given)):
            path.append(call)
            wanted |= set(map(id, call.taken)) - known
    return path[::-1]


def run(calls: Sequence[Call], values: Mapping[int, Any]) -> dict[int, Any]:
    """Computes the results of calls; values are looked up and returned by the id of their Keras tensor."""
    values = dict(values)

    def value(each: Any) -> Any:
        return values[id(each)] if isinstance(each, keras.KerasTensor) else each

    for call in calls:
        args, kwargs = keras.tree.map_structure(value, [call.args, call.kwargs])  # pyright: ignore
        results = keras.tree.flatten(call.layer(*args, **kwargs))
        values |= {id(given): result for given, result in zip(call.given, results, strict=True)}
    return values
