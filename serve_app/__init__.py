"""The endpoint: a Ray Serve application that answers HTTP requests with the predictions of an exported model."""
