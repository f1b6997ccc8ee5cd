"""The launcher: the one process that keeps root. The server, which does not, asks it with the `Driver` port's verbs."""
