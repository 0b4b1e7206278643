"""What a network is: a captured graph of layers and operators, and where it is rounded."""
