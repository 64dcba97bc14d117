"""What each site adds is masked; only the sum of all can be read."""
