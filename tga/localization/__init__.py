"""Where safety activates in a model, and what pictures do there: Algorithm 1 and interventions (Figures 2 to 5)."""
