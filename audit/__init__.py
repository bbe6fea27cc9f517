"""spruce-audit: does an image classifier decide for the right reason?"""
