"""Self-hosted implementation of the Klein image API."""

__version__ = "0.1.0"
