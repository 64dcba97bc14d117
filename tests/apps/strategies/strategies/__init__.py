"""Find the middle of all sites' points, with each of Flower's strategies."""
