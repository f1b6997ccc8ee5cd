"""What may be asked of requests in front of a function or a route: one file per rule."""
