"""Runs in FLARE's job process at a site."""
