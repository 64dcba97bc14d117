"""Every client says what its site gives it."""
