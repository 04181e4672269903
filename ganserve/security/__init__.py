"""Who may call, how much, and the certificates and tokens that say so."""
