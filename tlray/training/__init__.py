"""A training run: prepares data and model, learns on Ray Train's workers, exports a bundle."""
