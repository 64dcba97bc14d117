"""All that knows a Flower version: SuperLink, SuperNode, the wire's names, what passes on it."""
