"""A model that is no array: one record with many bytes."""
