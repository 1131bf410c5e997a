"""Training: contrastive losses, the two stages and their data."""
