"""Looks at a machine and what a server has on it: pure of the network, and of anything that would change it."""
