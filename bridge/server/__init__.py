"""Runs in FLARE's job process at the server."""
