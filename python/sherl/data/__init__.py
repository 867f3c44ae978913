"""Text tables and the demo's files."""
