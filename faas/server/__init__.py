"""`faas serve`: a composition root. `main.py` is the all-in-one server, `lanes/` its processes beside it."""
