"""Every client adds what a die shows."""
