"""The whole path in one run, on the made corpus."""
