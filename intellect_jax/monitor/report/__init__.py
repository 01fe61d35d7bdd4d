"""report.html: a run on one self-contained page, built from nothing but its run directory."""
