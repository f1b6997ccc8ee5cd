"""The registry's database: which blobs, manifests and tags there are. Its own, so that the registry runs alone."""
