"""The version of cmoe: what it says of itself, and what it writes into its stores."""

__version__ = "0.1.0"
