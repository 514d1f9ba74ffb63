"""Features of images: computed by a pretrained network, kept as Parquet, shared through Ray's object store."""
