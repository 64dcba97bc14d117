"""How are the sites' numbers distributed? None of them leaves its site."""
