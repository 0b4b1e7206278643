"""How good a model is and how far it is from another one, in whichever runtime executes it."""
