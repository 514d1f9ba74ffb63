"""Prediction of uploaded images: admission, decoding, the queue, and the deployment that holds the model."""
