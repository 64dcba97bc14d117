"""Find the distribution of the sites' numbers. None of the numbers leaves its site."""
