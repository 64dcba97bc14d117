"""Every client adds 1 to every number."""
