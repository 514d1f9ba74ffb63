"""Predicts with a bundle: arrays of images in this process (`predictor`), or whole folders on Ray (`score`)."""
