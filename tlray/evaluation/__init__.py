"""Evaluates models: computes metrics of predictions, draws their figures, and writes the report that shows them."""
