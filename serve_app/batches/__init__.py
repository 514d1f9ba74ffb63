"""Bulk scoring through the endpoint, as jobs of Ray's job server."""
