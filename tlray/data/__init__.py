"""From a folder of images to rows of pixels: listed, audited, split, decoded, scheduled and streamed."""
