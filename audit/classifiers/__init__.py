"""Classifiers under audit: any trained torch module behind one interface, pixels in [0, 1] to features and logits."""
