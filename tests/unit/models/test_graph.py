"""Graphs of small models: what they list, and what is computed from a part of them."""

import keras
import numpy as np
import pytest

from tlray.models import graph


def sequential() -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(2, name="b")])


def nested() -> keras.Model:
    image = keras.Input((3,))
    return keras.Model(image, keras.layers.Dense(1, name="last")(sequential()(image)))


def two_inputs() -> keras.Model:
    first, second = keras.Input((3,)), keras.Input((4,))
    joined = keras.layers.Concatenate(name="joined")([first, second])
    return keras.Model([first, second], keras.layers.Dense(2, name="b")(joined))


def names(traced: graph.Graph) -> list[str]:
    return [getattr(call.layer, "name", "same") for call in traced.calls]


def test_calls_are_in_order_of_execution():
    assert names(graph.trace(sequential())) == ["a", "b"]
    assert names(graph.trace(two_inputs())) == ["joined", "b"]
    model = nested()
    assert names(graph.trace(model)) == [model.layers[1].name, "last"]
    assert names(graph.trace(model, with_nested=True)) == ["same", "a", "b", "same", "last"]


def test_the_layers_are_the_models_own():
    model = sequential()
    assert [call.layer for call in graph.trace(model).calls] == model.layers


@pytest.mark.parametrize("with_nested", [False, True])
def test_a_part_is_computed_from_its_tensors(with_nested):
    model = nested()
    traced = graph.trace(model, with_nested=with_nested)
    start, end = traced.input, traced.output
    images = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    found = graph.run(graph.between(traced.calls, [start], [end]), {id(start): keras.ops.convert_to_tensor(images)})
    np.testing.assert_allclose(found[id(end)], model(images), rtol=1e-6)
    last = traced.calls[-1]
    assert graph.between(traced.calls, last.taken, [end]) == [last]


def test_a_model_with_two_inputs_has_no_single_one():
    traced = graph.trace(two_inputs())
    assert [tuple(each.shape) for each in traced.inputs] == [(None, 3), (None, 4)]
    with pytest.raises(ValueError, match="too many values"):
        _ = traced.input
