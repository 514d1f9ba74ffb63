"""One update by hand: a weighted cross-entropy, and a regularizer of which each replica adds its part."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tlray.training import step


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_an_update_follows_the_gradient_of_loss_and_regularizer(num_replicas):
    features = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    weights = np.array([0.25, 0.75], np.float32)
    start = np.array([[0.5, -0.5], [0.1, 0.2]], np.float32)
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.1))
    model = keras.Model(inputs, layer(inputs))
    model.set_weights([start])
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)
    logits, loss = step.update(
        model,
        optimizer,
        lambda: model(features, training=True),
        tf.constant([0, 1]),
        tf.constant(weights),
        num_replicas=num_replicas,
    )
    expected = features @ start
    shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)
    assert float(loss) == pytest.approx(-(weights * np.log(shares[[0, 1], [0, 1]])).sum(), rel=1e-6)
    slope = features.T @ (weights[:, np.newaxis] * (shares - np.eye(2))) + 2 * 0.1 * start / num_replicas
    np.testing.assert_allclose(model.get_weights()[0], start - 0.5 * slope, rtol=1e-5)
