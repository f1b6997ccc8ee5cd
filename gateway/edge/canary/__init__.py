"""Two revisions behind one alias: who gets which, how they do beside each other, and the way back."""
