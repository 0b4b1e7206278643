"""What a network is: an exported graph with exact layers, whatever classes it was written with."""
