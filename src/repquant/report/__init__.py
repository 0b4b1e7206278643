"""A run's record, and views of it."""
