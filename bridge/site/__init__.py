"""Code that runs in FLARE's job process at a site."""
