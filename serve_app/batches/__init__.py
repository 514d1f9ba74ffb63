"""Bulk scoring through the endpoint: batches, which run as jobs of Ray's job server."""
