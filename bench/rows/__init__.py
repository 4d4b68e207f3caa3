"""The rows of the table "Sync engine", each by itself: what is measured, beside what, and which goal it has."""
