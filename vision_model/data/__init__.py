"""Images to learn from: sources, tasks, mixtures and augmentation. Training only."""
