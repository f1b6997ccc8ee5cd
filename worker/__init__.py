"""The worker: runs instances of functions in sandboxes. Holds no database; obeys a desired state."""
