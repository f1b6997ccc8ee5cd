"""Copies of other registries: pulled through this one, kept with an expiry, served when the other one is away."""
