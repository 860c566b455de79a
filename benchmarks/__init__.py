"""Side-by-side runs of Dragoman and its peers: `make bench`."""
