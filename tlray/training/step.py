"""One update of a model's trainable variables, shared by the training loop and the trials of a sweep."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def update(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    logits_of: Callable[[], Any],
    labels: Any,
    weights: Any,
    *,
    num_replicas: int = 1,
) -> tuple[Any, Any]:
    """Makes one update by the weighted cross-entropy of a batch plus the model's own losses. Runs in a `tf.function`.

    Args:
        model: Has the trainable variables, and the losses of regularizers.
        optimizer: Applies the gradients; under a `tf.distribute` strategy it sums them over the replicas first.
        logits_of: Computes the logits, float32 [batch, classes], in training mode.
        labels: Class indices, int32 [batch].
        weights: Weights of the rows' cross-entropy, float32 [batch]. To minimize a mean, they sum to 1 over the batch
            of all replicas.
        num_replicas: Number of replicas that make this update together; each adds its part of the model's own losses.

    Returns:
        The logits, and the weighted sum of the cross-entropy, before the update.
    """
    variables = model.trainable_variables
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for variable in variables:
            tape.watch(variable.value)
        logits = logits_of()
        loss = tf.reduce_sum(weights * tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        penalty = tf.add_n(model.losses) / num_replicas if model.losses else 0.0
        objective = loss + penalty
    optimizer.apply(tape.gradient(objective, [variable.value for variable in variables]), variables)
    return logits, loss
