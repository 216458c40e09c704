"""How the trainers share a step's work: parameter servers and what they exchange."""
