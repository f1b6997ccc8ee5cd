"""OCI images as values: digests, references, descriptors, manifests, and the client that moves them."""
