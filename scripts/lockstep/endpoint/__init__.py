"""What a server and those who ask it agree on."""
