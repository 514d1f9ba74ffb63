"""HTTP parts that all protocols share: API keys, limits of bodies, the request log; and the pages for people."""
