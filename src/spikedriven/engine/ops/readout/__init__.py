"""The mean over tokens, the last neurons, and the classes' scores."""
