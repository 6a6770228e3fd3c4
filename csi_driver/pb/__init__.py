"""Generated protocol modules; written by scripts/generate from proto/, never by hand, and they know nothing of us."""
