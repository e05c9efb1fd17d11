"""Train the encoder and its heads from a recipe."""
