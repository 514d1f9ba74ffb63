"""From images to predictions with a bundle: in this process, or for whole folders on Ray."""
