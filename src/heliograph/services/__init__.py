"""The services, one room each. Rooms never import each other."""
