"""Generator files of every kind, read without running anything they hold."""
