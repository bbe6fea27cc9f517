"""The 15 corruptions of ImageNet-C, at any image size."""
