"""Measure a model: the figures of its tasks, its baselines, and how it does on sources it never saw."""
