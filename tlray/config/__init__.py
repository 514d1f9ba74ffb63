"""Settings of every command, as frozen dataclasses, and the recipes that fill them."""
