"""What the endpoint tells of itself: metrics, and drift of what it is asked about."""
