"""Training: the recipe, its losses and optimizer, and one loop that can be interrupted and resumed."""
