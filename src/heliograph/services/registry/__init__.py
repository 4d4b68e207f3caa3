"""The registry: takes documents in, validates, versions, signs and commits them, and answers for what was committed."""
