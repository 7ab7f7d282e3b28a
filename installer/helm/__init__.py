"""Helm: reading charts, running the binary, finding and replacing images in what it renders."""
