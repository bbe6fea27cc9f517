"""What lies on disk: cache, checkpoints, shipped and pretrained weights."""
