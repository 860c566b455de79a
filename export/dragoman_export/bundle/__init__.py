"""From a checkpoint to a bundle, and all that is measured of a bundle."""
