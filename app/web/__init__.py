"""The page and its API: an edge that turns requests into calls of the use cases."""
