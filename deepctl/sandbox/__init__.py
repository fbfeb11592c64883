"""The place where an agent's commands run, and what they can see and use there. Independent of agents."""
