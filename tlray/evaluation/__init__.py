"""How good a model is: its metrics, their figures, and the report that shows them."""
