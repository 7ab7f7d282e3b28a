"""The file format: pure but for archive."""
