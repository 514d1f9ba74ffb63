"""Linear probes: logistic regressions on features, and how their accuracy grows with the images."""
