"""White-box and black-box attacks within a ball, and what they share."""
