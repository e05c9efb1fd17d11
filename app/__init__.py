"""Hilum, the application: commands, the page, use cases, and what is kept."""
