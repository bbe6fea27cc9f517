"""Training of classifiers and of the phantom's factor network."""
