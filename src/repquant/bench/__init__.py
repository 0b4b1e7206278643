"""Speed, and the machine it was measured on."""
