"""The ranges of activations, found on images, and channels scaled so that one range serves all."""
