"""From the folders of other toolkits to checkpoints: one file for each family of models."""
