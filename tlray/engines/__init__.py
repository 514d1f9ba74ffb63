"""Runs networks: 8-bit images in, arrays of numbers out. OpenVINO does it on CPUs, TensorFlow on GPUs."""
