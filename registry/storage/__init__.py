"""Where blobs lie: a port and its implementation on a file system."""
