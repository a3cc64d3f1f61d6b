"""The commands of ``ttrl``, one file for each group of them."""
