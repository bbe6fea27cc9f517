"""Accuracy on clean and on attacked images."""
