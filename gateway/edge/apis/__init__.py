"""APIs: hosts, base paths, stages and routes in front of functions."""
