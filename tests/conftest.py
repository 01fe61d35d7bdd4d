"""Being here, in a package, puts the repository on the import path: tests find helpers as ``tests.policies``."""
