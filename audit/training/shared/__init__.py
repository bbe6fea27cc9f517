"""What every training needs: streams of images, cards, precision."""
