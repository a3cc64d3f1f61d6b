"""Our votes in other trainers."""
