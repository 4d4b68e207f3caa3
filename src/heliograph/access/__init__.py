"""Who may do what: tokens, principals, permissions."""
