"""How many tokens should we draft? Pure Python: a state goes in, a decision comes out."""
