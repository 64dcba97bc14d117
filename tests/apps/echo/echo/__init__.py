"""What the server says comes back."""
