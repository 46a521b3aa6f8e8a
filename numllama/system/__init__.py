"""The operating system: signals and standard streams."""
