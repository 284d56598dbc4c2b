"""Published weights: reading, recognising and translating them, and writing them back."""
