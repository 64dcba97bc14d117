"""Code that FLARE's job processes share, at a site and at the server."""
