"""Layers of images, unpacked once into a content-addressed store."""
