"""The REST surface, by subject. Handlers read a request, call a use case, and write the answer; nothing is decided here."""
