"""Convolutional LSTM encoder-forecaster."""
