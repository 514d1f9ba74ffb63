"""May a result be believed? Copies, shortcuts, controls, intervals, calibration, novelty, and when to refer."""
