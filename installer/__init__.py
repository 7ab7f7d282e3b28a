"""What ships to the site: the trusted base, small and without an import of bundler."""
