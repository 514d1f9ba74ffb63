"""Where bytes lie: local paths, zip archives and object stores; outputs that appear whole or not at all."""
