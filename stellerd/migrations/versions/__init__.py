"""One module a change; its revision is the next number."""
