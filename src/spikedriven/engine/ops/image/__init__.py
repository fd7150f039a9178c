"""The image's bytes as eight planes of bits, through the first convolution."""
