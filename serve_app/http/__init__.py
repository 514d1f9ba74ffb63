"""What every request passes: keys, limits of bodies, the log; and the pages for people."""
