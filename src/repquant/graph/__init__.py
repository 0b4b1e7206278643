"""What a network is: a captured graph of exact layers and operators, and where it is rounded."""
