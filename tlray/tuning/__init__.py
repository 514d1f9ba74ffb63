"""A sweep: many settings tried side by side on the same features, and the table that compares them."""
