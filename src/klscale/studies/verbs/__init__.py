"""The commands' verbs: each reads or scores what it needs, studies it, and returns one result; nothing is printed."""
