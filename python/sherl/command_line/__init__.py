"""The `sherl` command."""
