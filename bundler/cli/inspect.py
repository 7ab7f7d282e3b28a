"""``bundler inspect``: what is inside a bundle, told before it travels as it is on the site."""

from installer.cli.inspect import command

__all__ = ["command"]
