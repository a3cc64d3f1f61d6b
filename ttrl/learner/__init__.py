"""Training of the policy: its weights, its loss and its optimizer."""
