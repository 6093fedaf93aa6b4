"""One file per training method, all of one shape."""
