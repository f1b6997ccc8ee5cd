"""The OCI registry: stores images and knows nothing of functions. Runs alone: `python -m registry`."""
