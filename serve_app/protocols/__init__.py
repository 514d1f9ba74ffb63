"""Addresses and formats of predictions: uploads, TensorFlow Serving, the Open Inference Protocol."""
