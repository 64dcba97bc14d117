"""Where is the middle of all sites' points? Flower's strategies find it, each in its way."""
