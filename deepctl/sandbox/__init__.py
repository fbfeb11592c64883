"""Where an agent's commands run, and what they can see and use there. Knows nothing of agents."""
