"""What this kernel does for sandboxes: mounts, control groups, the list of system calls."""
