"""Numbers computed from images, embeddings and predictions: distances, realism, localisation, transfer, intervals."""
