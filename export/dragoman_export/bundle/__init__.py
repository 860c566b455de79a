"""From a checkpoint to a bundle, and the measurements of a bundle."""
