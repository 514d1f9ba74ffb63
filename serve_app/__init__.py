"""The endpoint: a Ray Serve application that answers over HTTP with an exported model."""
