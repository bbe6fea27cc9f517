"""What several trainings use: the loop, passes over the images, precision and cards."""
