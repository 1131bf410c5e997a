"""From annotation lists and image folders to datasets. Nothing in here imports torch."""
