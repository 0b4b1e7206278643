"""What is known about RepVGG: branches, inserted normalizations, and training through the equivalent kernel."""
