"""Routes and formats for predictions: uploads, TensorFlow Serving's REST API, the Open Inference Protocol."""
