"""What a draft learns from: prompts, responses, and training examples."""
