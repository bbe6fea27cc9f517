"""Whether a robust accuracy may be believed."""
