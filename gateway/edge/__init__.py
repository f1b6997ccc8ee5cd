"""What stands in front of functions: where a request goes, who may call, how often, and what its answer gets."""
