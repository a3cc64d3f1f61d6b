"""What a step's answers are worth, and which of them are trained on."""
