"""Train small models of the family on a processor: data, loop, resumable state, export."""
