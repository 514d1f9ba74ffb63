"""Model bundles: directories with an exported model, a description, a model card and checksums of all files."""
