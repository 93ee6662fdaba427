"""What is computed: torch modules written for static export, trainable and testable eagerly.

The decoder of every model family, shaped by a `DecoderConfig`, and the draft heads. Nothing here knows where weights
come from or how a graph is run; the room imports torch and no other room.
"""
