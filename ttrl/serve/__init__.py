"""A server that answers questions by votes, and learns from them between the requests."""
