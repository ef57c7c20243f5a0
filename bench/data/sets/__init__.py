"""Datasets by name, and folders of images."""
