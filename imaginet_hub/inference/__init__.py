"""From a model folder and images to answers."""
