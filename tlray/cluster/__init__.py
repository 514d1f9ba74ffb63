"""The Ray that a command runs on: how it is reached, what it has, and how much of it the command takes."""
