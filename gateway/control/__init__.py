"""The control API: one file per noun, with its operations."""
