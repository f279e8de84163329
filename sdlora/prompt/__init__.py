"""What a prompt says besides its words, and what a picture says of its making."""
