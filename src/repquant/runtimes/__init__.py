"""Engines that execute a model, one a file, behind one interface; each is imported when it is opened."""
