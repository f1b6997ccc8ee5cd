"""What all instances may have together, who has it, and who waits for it."""
