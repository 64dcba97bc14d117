"""The sites send back what the server says."""
