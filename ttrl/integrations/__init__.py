"""Our votes and our loss in other trainers."""
