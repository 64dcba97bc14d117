"""A question to each site."""
