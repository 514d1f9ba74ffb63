"""From an uploaded image to its answer: admitted, decoded, queued, predicted."""
