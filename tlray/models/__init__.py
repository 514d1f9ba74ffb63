"""Keras networks: the backbone and its weights, the classifier on top, and explanations of its answers."""
