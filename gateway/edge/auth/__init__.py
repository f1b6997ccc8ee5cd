"""The ways in: one file per method, each a `Method` (`method.py`); `gateway.edge.doorman` asks them in turn."""
