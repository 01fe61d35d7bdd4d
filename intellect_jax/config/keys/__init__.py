"""The keys of the configuration, a file per theme; ``schema`` puts them in order."""
