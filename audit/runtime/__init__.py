"""Seeds, progress, devices and processes."""
