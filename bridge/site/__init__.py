"""See docs/architecture."""
