"""Monitoring of the endpoint: its metrics, and the drift of images and predictions."""
