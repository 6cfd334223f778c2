"""From video files and sentences to features: decoding and encoders. Imports no Ray, and nothing heavy by itself."""
