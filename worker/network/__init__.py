"""Network namespaces of instances: sockets inside them, a pool made ahead, and the way out."""
